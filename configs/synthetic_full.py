"""Synthetic people of every kind under strong augmentation, for photos of real ones. Not yet trained.

  python train.py --config=configs/synthetic_full.py --workdir=runs/shipped
  python eval.py --config=configs/synthetic_full.py --workdir=runs/shipped

Drawings alone: weights of it carry no licence but ours. About 20 minutes on two cores by the examples a second of the
other small recipes.
"""

from configs import tiny


def get_config():
    """Returns the recipe; see configs/base.py for every field."""
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
    c.train.steps = 900
    c.train.checkpoint_every = 100
    c.train.log_every = 20
    return c
