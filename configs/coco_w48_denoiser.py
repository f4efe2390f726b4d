"""COCO 2017, the denoiser alone on a published HRNet-W48, 384 x 288. Not yet trained.

As coco_w32_denoiser.py, on the pose model of 76.3 AP.

  pip install -e ".[hub]"
  python train.py --config=configs/coco_w48_denoiser.py --workdir=DIR --config.data.root=COCO
"""

from configs import coco_w32_denoiser


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = coco_w32_denoiser.get_config()
    c.input_size = (384, 288)
    c.model.backbone = "w48"
    c.model.pretrained = "hrnet_w48_384x288"
    c.codec.sigma = 3.0
    return c
