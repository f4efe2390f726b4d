"""Scores a results file against an annotation file."""

from typing import Any

from dpose_jax.data.coco_format import BOX_AREA, check_joint_names, is_own_format, read_coco
from dpose_jax.evaluation.aic import results_from_native
from dpose_jax.evaluation.mean_pose import score_mean_pose
from dpose_jax.evaluation.metrics import score
from dpose_jax.evaluation.results_check import check_inputs
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.workdir.files import read_json, sha256

# Data sets, and whether the scale of OKS is the annotated area; CrowdPose and AI Challenger annotate none.
DATASETS = {"coco": True, "crowdpose": False, "aic": False}


def score_files(
    annotations: str, results: str, joint_set: JointSet, *, use_area: bool, engine: str = "hotcoco"
) -> dict[str, Any]:
    """All metrics of a results file, in COCO's or AI Challenger's format, as the annotations.

    The scale of OKS is the annotated area with `use_area`, otherwise 0.53 w h of the box. Returns `{**metrics,
    "joints": {joint: {AP, PCK@0.2, PCK@0.1}}, "mean_pose": {...}, "protocol": {...}}`, see `metrics.score` and
    `mean_pose.score_mean_pose`. Prints, and counts in `protocol["left_out"]`, which entries of AI Challenger's submission
    do not count, see `aic.results_from_native`.

    Raises FileNotFoundError, or ValueError that names file and entry if a file is cut short, in another format, does
    not fit the joint set (`check_joint_names`), or breaks a rule of `check_inputs`.
    """
    truth, found = read_coco(annotations, lambda _: None), read_json(results)
    if isinstance(truth, dict) and isinstance(truth.get("categories"), list):
        for category in truth["categories"]:
            if isinstance(category, dict) and isinstance(category.get("keypoints"), list):
                check_joint_names([str(name) for name in category["keypoints"]], joint_set, annotations)
    left_out: dict[str, list[str]] = {}
    if is_own_format(found) and isinstance(truth, dict) and isinstance(truth.get("images"), list):
        found, left_out = results_from_native(found, truth["images"], results)
        for rule, images in left_out.items():
            print(f"{results}: {rule}: {len(images)} left out, such as {', '.join(map(repr, images[:3]))}")
    inputs = check_inputs(truth, found, joint_set, use_area=use_area, names=(annotations, results))
    metrics, joints = score(inputs, engine=engine, name=annotations)
    protocol = {
        "annotations": annotations,
        "annotations_sha256": sha256(annotations),
        "results": results,
        "results_sha256": sha256(results),
        "joint_set": joint_set.name,
        "engine": engine,
        "area": "annotated" if use_area else f"{BOX_AREA} w h of the box",
        "images": len(inputs.images),
        "persons": sum(not a["iscrowd"] and a["num_keypoints"] > 0 for a in inputs.annotations),
        "predicted": len(inputs.results),
        "left_out": {rule: len(images) for rule, images in left_out.items()},
        "pck_length": "longer side of the box",
        "pck_match": "best assignment by OKS",
    }
    baseline = score_mean_pose(inputs, engine=engine)
    return {**metrics, "joints": joints, "mean_pose": baseline, "protocol": protocol}
