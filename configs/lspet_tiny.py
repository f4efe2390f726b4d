"""Leeds Sports Pose Extended, 14 joints in CrowdPose's order, from random weights on two CPU cores.

  python train.py --config=configs/lspet_tiny.py --workdir=DIR --config.data.root=LSPET
  python eval.py --config=configs/lspet_tiny.py --workdir=DIR --config.data.root=LSPET

It reaches, with one step, AP .41, AP50 .82, PCK@0.2 .86 (coarse branch .36, .81, .84): ground-truth boxes, flip test,
seed 0, the 499 validation persons; an hour of training on one core, 48 minutes on two. See docs/results.md.
"""

from configs import tiny


def get_config():
    """Returns the recipe; see configs/base.py for every field."""
    c = tiny.get_config()
    c.joint_set = "crowdpose"
    c.data.set = "lspet"
    c.data.train_annotations = "annotations/lspet_train_crowdpose.json"
    c.data.train_images = "images"
    c.data.val_annotations = "annotations/lspet_val_crowdpose.json"
    c.data.val_images = "images"
    c.data.use_area = False
    c.augment.rotation = 40.0
    c.augment.scale = 0.3
    c.train.steps = 4000
    return c
