"""Drawn people of every kind under strong augmentation; with a U-Net the start of the bundled model, configs/photos.py.

Measured with one step on 403 unseen persons: AP 68.3, PCK@0.1 90.3 (coarse branch 45.3, 79.0). Their own boxes, flip
test, seed 0. On photos it is poor: COCO val AP 0.3, PCK@0.1 30.4 (docs/appendix/synthetic.md). The data are drawings
only, so its weights carry no other license. 40 minutes of training on two busy cores.

  python train.py --config=configs/synthetic_full.py --workdir=runs/drawn
"""

from configs import tiny


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = tiny.get_config()
    c.data.source = "synthetic"
    c.data.synthetic.update(train_images=20_000, val_images=200, difficulty=0.4)
    c.augment.update(rotation=40.0, scale=0.35, shift=0.05, color=0.4, half_body=0.15)
    c.optim.ema = 0.998
    c.train.update(steps=2400, checkpoint_every=100, log_every=20)
    return c
