"""Overfits a few hundred COCO persons, to check the whole path on real images with two CPU cores.

Measured with `diffusion.t_range=(1, 1000)` on its own 360 training persons, one step: AP 96 (coarse branch 85).
Ground-truth boxes, flip test, seed 0; 37 minutes on two busy cores. On val it is near zero, as expected.

  python train.py --config=configs/coco_tiny.py --workdir=DIR --config.data.root=COCO
  python eval.py --workdir=DIR --config.eval.split=train
"""

from configs import tiny


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = tiny.get_config()
    c.data.val_detections = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
    c.augment.update(scale=0.0, rotation_prob=0.0)  # only the flip, for the flip test: the aim is to overfit
    c.optim.weight_decay = 0.0
    c.train.steps = 1600
    c.eval.min_box_score = 0.1
    return c
