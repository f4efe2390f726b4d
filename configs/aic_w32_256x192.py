"""AI Challenger, HRNet-W32, 256 x 192: about 210 epochs of 378,000 persons from ImageNet weights. Not yet trained.

`data.root` is the official layout, with AI Challenger's own JSON. For the common conversion to COCO's format add
--config.data.train_annotations=annotations/aic_train.json --config.data.val_annotations=annotations/aic_val.json.
As in the literature, OKS areas are 0.53 w h of the box, and boxes are ground truth.

  python train.py --config=configs/aic_w32_256x192.py --workdir=DIR --config.data.root=AIC
"""

from configs import base


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = base.get_config()
    c.joint_set = c.data.set = "aic"
    train, val = "ai_challenger_keypoint_train_20170902", "ai_challenger_keypoint_validation_20170911"
    c.data.train_annotations = f"{train}/keypoint_train_annotations_20170909.json"
    c.data.train_images = f"{train}/keypoint_train_images_20170902"
    c.data.val_annotations = f"{val}/keypoint_validation_annotations_20170911.json"
    c.data.val_images = f"{val}/keypoint_validation_images_20170911"
    c.data.use_area = False
    c.train.steps = 620_000
    return c
