"""Drawn people of every kind under strong augmentation: the bundled model.

  python train.py --config=configs/synthetic_full.py --workdir=runs/shipped
  python eval.py --workdir=runs/shipped

Measured with one step on 403 unseen persons: AP 63.7, PCK@0.2 96.2 (coarse branch 55.6, 94.9). Their own boxes, flip
test, seed 0. On photos it is poor: COCO val AP 0.6, PCK@0.2 58.0 (dpose_jax/assets/README.md). The data are drawings
only, so its weights carry no other license. 39 minutes of training on one core.
"""

from configs import tiny


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = tiny.get_config()
    c.data.source = "synthetic"
    c.data.synthetic.train_images = 20_000
    c.data.synthetic.val_images = 200
    c.data.synthetic.difficulty = 0.4
    c.augment.rotation = 40.0
    c.augment.scale = 0.35
    c.augment.shift = 0.05
    c.augment.color = 0.4
    c.augment.half_body = 0.15
    c.optim.ema = 0.998
    c.train.steps = 2400
    c.train.checkpoint_every = 100
    c.train.log_every = 20
    return c
