"""Leeds Sports Pose Extended, 14 joints in CrowdPose's order, from random weights on two CPU cores.

Measured with one step on the 499 validation persons: AP 40.9, AP50 81.5, PCK@0.2 86.3 (coarse branch 35.8, 81.1, 84.0).
Ground-truth boxes, flip test, seed 0. Training takes an hour on one core, 48 minutes on two. See docs/results.md.

  python train.py --config=configs/lspet_tiny.py --workdir=DIR --config.data.root=LSPET
"""

from configs import tiny


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = tiny.get_config()
    c.joint_set, c.data.set = "crowdpose", "lspet"
    c.data.update(train_images="images", train_annotations="annotations/lspet_train_crowdpose.json", use_area=False)
    c.data.update(val_images="images", val_annotations="annotations/lspet_val_crowdpose.json")
    c.augment.update(rotation=40.0, scale=0.3)
    c.train.steps = 4000
    return c
