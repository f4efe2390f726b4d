"""CrowdPose, HRNet-W32, 256 x 192: trained on trainval, evaluated on test. Not yet trained.

About 210 epochs from ImageNet weights, if trainval holds three fifths of the 80,000 persons; the run prints how many it
keeps. `data.root` is the official layout: images/ and json/. OKS areas are 0.53 w h of the box: the files have none.
Boxes are ground truth. The literature also reports YOLOv3's boxes, several AP lower and not comparable: add
--config.eval.boxes=detections, with that file as CROWDPOSE/annotations/det_for_crowd_test_0.1_0.5.json.

  python train.py --config=configs/crowdpose_w32_256x192.py --workdir=DIR --config.data.root=CROWDPOSE
"""

from configs import base


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = base.get_config()
    c.joint_set = c.data.set = "crowdpose"
    c.data.update(train_images="images", train_annotations="json/crowdpose_trainval.json", use_area=False)
    c.data.update(val_images="images", val_annotations="json/crowdpose_test.json")
    c.data.val_detections = "annotations/det_for_crowd_test_0.1_0.5.json"
    c.train.steps = 78_750
    return c
