"""COCO 2017, HRNet-W32, 256 x 192. Not yet trained.

The base recipe: batch 128 for 210 epochs of 149,813 persons, from ImageNet weights (docs/pretrained.md). `--dry_run`
estimates the time. `data.root` is the official layout: annotations/, train2017/, val2017/. Half of the examples are fed
the model's own coarse heatmaps (`diffusion.own_share`), the others joints of little noise (`diffusion.t_range`); both
are (ours), from tests on small data (docs/appendix/ablations.md). On more devices set --config.train.batch_size=B and
--config.train.steps = 210 x 149,813 / B. The learning rate follows: 1e-3 x B / 128 (`optim.base_batch`).
Boxes are ground truth. For those of published tables, by a detector of 56.4 AP, add --config.eval.boxes=detections,
with its file as COCO/person_detection_results/COCO_val2017_detections_AP_H_56_person.json.

  python train.py --config=configs/coco_w32_256x192.py --workdir=DIR --config.data.root=COCO
"""

from configs import base


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = base.get_config()
    c.data.val_detections = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
    return c
