"""A few hundred real COCO persons, learnt by heart: checks the whole path on real images on two CPU cores.

  python train.py --config=configs/coco_tiny.py --workdir=DIR --config.data.root=COCO
  python eval.py --config=configs/coco_tiny.py --workdir=DIR --config.data.root=COCO --config.eval.split=train

With `diffusion.t_range=(1, 1000)` it reached on its own 360 training persons: AP .97 with one step (coarse branch
.94); ground-truth boxes, flip test, seed 0. About 23 minutes on two cores. On val it is near zero, as it must be. See
docs/results.md.
"""

from configs import tiny


def get_config():
    """Returns the recipe; see configs/base.py for every field."""
    c = tiny.get_config()
    c.data.train_images = "images/train2017"
    c.data.val_images = "images/val2017"
    c.data.val_detections = "annotations/person_detections_val2017_centernet.json"
    # No augmentation but the flip, which the flip test relies on: the aim is to overfit.
    c.augment.scale = 0.0
    c.augment.rotation_prob = 0.0
    c.optim.weight_decay = 0.0
    c.train.steps = 1600
    c.eval.min_box_score = 0.1
    return c
