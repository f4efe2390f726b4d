"""COCO's keypoint evaluation through pycocotools, for any joint set and wholly in memory."""

import contextlib
import io
import math
from collections.abc import Iterable

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dpose_jax.files import write_json
from dpose_jax.skeletons import JointSet

METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def evaluate_results(ground_truth: dict, results: list[dict], joint_set: JointSet) -> dict[str, float | None]:
    """COCO's ten keypoint metrics.

    Annotation ids are numbered anew on the way (pycocotools takes id 0 for "unmatched"). The area of a result, which
    APm, APl, ARm and ARl use, follows pycocotools: of its `bbox` if every result carries one, else of its joints'
    extent, as for HRNet's result files.

    Args:
      ground_truth: COCO `person_keypoints` dict; every annotation has `area` and `bbox`. `iscrowd` and
        `num_keypoints` are filled in where absent. Crowds and persons without joints are neither hits nor misses.
      results: COCO results dicts: `image_id`, `category_id`, `keypoints` (3J floats; COCO's third is not looked at)
        and `score`. May be empty: every metric is then 0.
      joint_set: its sigmas are the OKS sigmas.

    Returns:
      AP, AP50, AP75, APm, APl, AR, AR50, AR75, ARm and ARl as Python floats in [0, 1]; None where the ground truth
      holds no person of that size (pycocotools' -1), so that the dict is valid JSON. Nothing is printed, and the
      arguments are left as they are.

    Raises:
      ValueError: if an annotation lacks a field or has the wrong number of joints, or a result does, or a result
        names an unknown image or category or holds a number that is not finite. Names the annotation or result.
    """
    annotations = [_annotation(i, a, joint_set) for i, a in enumerate(ground_truth["annotations"], start=1)]
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    for i, result in enumerate(results):
        _check_result(i, result, joint_set, images, categories)
    keep_boxes = all("bbox" in result for result in results)
    plain = [_plain_result(result) for result in results] if keep_boxes else without_boxes(results)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _coco({**ground_truth, "annotations": annotations})
        if plain:
            predicted = truth.loadRes(plain)
        else:
            predicted = _coco({**ground_truth, "annotations": []})  # loadRes refuses an empty list
        evaluation = COCOeval(truth, predicted, "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(joint_set.sigmas, np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: None if value < 0 else float(value) for name, value in zip(METRICS, evaluation.stats, strict=True)}


def _coco(dataset: dict) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _annotation(number: int, annotation: dict, joint_set: JointSet) -> dict:
    """A copy with its id replaced by `number` and the optional fields filled in."""
    name = f"annotation {annotation.get('id', number)}"
    for field in ("image_id", "category_id", "keypoints", "area", "bbox"):
        if field not in annotation:
            raise ValueError(f"{name}: has no {field!r}")
    joints = annotation["keypoints"]
    if len(joints) != 3 * joint_set.num_joints:
        raise ValueError(
            f"{name}: keypoints must be {3 * joint_set.num_joints} numbers for joint set {joint_set.name!r}, "
            f"got {len(joints)}"
        )
    filled = {"iscrowd": 0, "num_keypoints": sum(v > 0 for v in joints[2::3]), **annotation}
    return {**filled, "id": number}


def _check_result(index: int, result: dict, joint_set: JointSet, images: set, categories: set) -> None:
    for field in ("image_id", "category_id", "keypoints", "score"):
        if field not in result:
            raise ValueError(f"result {index}: has no {field!r}")
    name = f"result {index} (image {result['image_id']})"
    if result["image_id"] not in images:
        raise ValueError(f"{name}: the ground truth has no such image")
    if result["category_id"] not in categories:
        raise ValueError(f"{name}: category_id must be one of {sorted(categories)}, got {result['category_id']}")
    if len(result["keypoints"]) != 3 * joint_set.num_joints:
        raise ValueError(
            f"{name}: keypoints must be {3 * joint_set.num_joints} numbers for joint set {joint_set.name!r}, "
            f"got {len(result['keypoints'])}"
        )
    if not math.isfinite(result["score"]) or not np.isfinite(np.asarray(result["keypoints"], np.float64)).all():
        raise ValueError(f"{name}: score and keypoints must be finite, got score {result['score']}")


def _plain_result(result: dict) -> dict:
    """The COCO fields of a result, as Python numbers: numpy's float32 is no JSON number."""
    plain = {
        "image_id": int(result["image_id"]),
        "category_id": int(result["category_id"]),
        "keypoints": [float(v) for v in result["keypoints"]],
        "score": float(result["score"]),
    }
    if "bbox" in result:
        plain["bbox"] = [float(v) for v in result["bbox"]]
    return plain


def without_boxes(results: Iterable[dict]) -> list[dict]:
    """The results in COCO's submission format: `image_id`, `category_id`, `keypoints` and `score`, Python numbers.

    A `bbox` would change the areas that pycocotools gives to results, hence APm and APl.
    """
    return [{key: value for key, value in _plain_result(r).items() if key != "bbox"} for r in results]


def write_results(path: str, results: Iterable[dict]) -> None:
    """Writes a COCO results file, as the evaluation server takes it (see `without_boxes`); atomic.

    Raises:
      ValueError: if a number is not finite.
    """
    write_json(path, without_boxes(results), indent=None)
