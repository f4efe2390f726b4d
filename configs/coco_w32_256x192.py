"""COCO 2017, HRNet-W32, 256 x 192. Not yet trained by anybody.

The base recipe as it stands, at global batch 128 for 210 epochs of 149,813 persons, from ImageNet weights, which
docs/pretrained.md says where to get. Its time and result are unknown; `--dry_run` estimates the time. `data.root` is
the official layout: annotations/, train2017/, val2017/. Half of the examples are fed the model's own coarse heatmaps
(`diffusion.own_share`), the others joints of little noise (`diffusion.t_range`), both ours: on small data the first
raised what denoising gains, the second perhaps (docs/results.md).

On more devices: with --config.train.batch_size=B the learning rate is 1e-3 x B / 128 (linear scaling,
`optim.base_batch`); give --config.train.steps = 210 x 149,813 / B beside it.

  python train.py --config=configs/coco_w32_256x192.py --workdir=DIR --config.data.root=COCO

Boxes are ground truth. The literature's tables are with the boxes of a 56.4-AP detector, for which add
--config.eval.boxes=detections, with the detector's file as COCO/person_detection_results/
COCO_val2017_detections_AP_H_56_person.json.
"""

from configs import base


def get_config():
    """Returns the recipe; see configs/base.py for every field."""
    c = base.get_config()
    c.data.val_detections = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
    return c
