"""Leeds Sports Pose Extended at the paper's size: HRNet-W32, 256 x 192. Not yet trained.

Data as in configs/lspet_tiny.py. From ImageNet weights, 293 epochs of 3,500 persons with moving averages. The study
compares HRNet, U-Net refiner, the paper's form and ours with it, see docs/study.md.

  python train.py --config=configs/lspet_w32_256x192.py --workdir=DIR --config.data.root=LSPET
"""

from configs import base, lspet_tiny


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c, small = base.get_config(), lspet_tiny.get_config()
    c.joint_set, c.data, c.augment = small.joint_set, small.data, small.augment
    c.data.workers = base.get_config().data.workers
    c.optim.update(schedule="cosine", warmup_steps=100, ema=0.998)
    c.train.steps = 8000
    return c
