"""COCO 2017, HRNet-W48, 384 x 288. Not yet trained.

As coco_w32_256x192.py, with HRNet's and DARK's widths of Gaussian and smoothing for this size.

  python train.py --config=configs/coco_w48_384x288.py --workdir=DIR --config.data.root=COCO
"""

from configs import coco_w32_256x192


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = coco_w32_256x192.get_config()
    c.input_size = (384, 288)
    c.model.backbone = "w48"
    c.codec.update(sigma=3.0, blur=17)
    return c
