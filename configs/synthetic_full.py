"""Synthetic people of every kind under strong augmentation: the model that comes with the package.

  python train.py --config=configs/synthetic_full.py --workdir=runs/shipped
  python eval.py --config=configs/synthetic_full.py --workdir=runs/shipped

It reaches on 403 unseen persons with one step: AP .64, PCK@0.2 .96 (coarse branch .56, .95); their own boxes, flip
test, seed 0. Photos of people: COCO val AP .01, PCK@0.2 .58; see dpose_jax/shipped/README.md. Drawings alone: weights
of it carry no licence but ours. 39 minutes of training on one core whose other was busy too.
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
    c.train.steps = 2400
    c.train.checkpoint_every = 100
    c.train.log_every = 20
    return c
