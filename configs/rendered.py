"""Rendered 3-D people under strong augmentation: a small model for photos. Needs the extra [render], see docs/data.md.

  python train.py --config=configs/rendered.py --workdir=runs/rendered \\
      --config.data.rendered.poses=COCO/annotations/person_keypoints_train2017.json \\
      --config.data.rendered.backgrounds=PICTURES
  python eval.py --workdir=runs/rendered --config.data.source=folder --config.data.root=COCO

The last command measures on photos. Without `poses` and `backgrounds` both are invented. A worker process renders about
14 images a second. Not trained to the end; docs/data.md says what 200 steps are worth.
"""

from configs import tiny


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = tiny.get_config()
    c.data.source = "rendered"
    c.data.workers = 2
    c.augment.update(rotation=40.0, scale=0.35, shift=0.05, color=0.4, half_body=0.15)
    c.optim.ema = 0.998
    c.train.update(steps=6000, checkpoint_every=500, log_every=20)
    return c
