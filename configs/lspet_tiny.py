"""Leeds Sports Pose Extended, 14 joints in CrowdPose's order, from random weights on two CPU cores.

Measured with one step on the 499 validation persons: AP 42.9, AP50 81.7, PCK@0.1 73.1 (coarse branch 29.4, 82.4, 65.6).
Ground-truth boxes, flip test, seed 0. Training takes 37 minutes on two busy cores. See docs/results.md.

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
