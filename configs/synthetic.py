"""People drawn on the fly, 17 COCO joints: the demo, `make demo`, for two CPU cores.

Measured with one step on 160 unseen persons: AP 78, PCK@0.1 93 (coarse branch 72, 90). Their own boxes, flip test,
seed 0. Training takes 6 minutes on one busy core. See docs/appendix/synthetic.md.

  python train.py --config=configs/synthetic.py --workdir=runs/demo
"""

from configs import tiny


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = tiny.get_config()
    c.data.source = "synthetic"
    c.data.synthetic.update(train_images=4000, val_images=120, difficulty=0.1)
    c.augment.update(rotation=20.0, scale=0.2)
    c.optim.warmup_steps = 50
    c.train.update(batch_size=16, steps=500, log_every=20)
    return c
