"""COCO's keypoint evaluation for any joint set, in memory, by pycocotools or its port hotcoco: the same numbers."""

import contextlib
import io
from collections.abc import Mapping, Sequence

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dpose_jax.evaluation.results_check import Inputs, check_inputs
from dpose_jax.pose.joint_sets import JointSet

ENGINES = ("pycocotools", "hotcoco")
METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def evaluate_results(
    ground_truth: dict, results: list[dict], joint_set: JointSet, *, use_area: bool = True, engine: str = "hotcoco"
) -> dict[str, float | None]:
    """COCO's ten keypoint metrics; see `check_inputs` for arguments and errors, `coco_metrics` for the rest."""
    return coco_metrics(check_inputs(ground_truth, results, joint_set, use_area=use_area), engine=engine)[0]


def coco_metrics(
    inputs: Inputs, slices: Mapping[str, list[int]] | None = None, *, engine: str = "hotcoco"
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """COCO's ten keypoint metrics, and the AP of some of the images alone.

    Crowds and persons with `num_keypoints` 0 are neither hits nor misses. An image counts its 20 results of highest
    score; equal scores keep their order. APm, APl, ARm and ARl read the area of a result: that of its `bbox` if the
    results have one, else of its joints' extent, as for HRNet's result files.

    Returns METRICS, computed by `engine`, and the AP over each slice (ids of images by name): fractions in [0, 1], 0
    without any result, None where the ground truth holds no person, or none of that size.
    """
    slices = dict(slices or {})
    parts: dict = {}
    ported = engine == "hotcoco" or not inputs.results  # pycocotools refuses an empty list
    if slices or ported:
        parts = _evaluate(inputs, inputs.annotations, inputs.results, inputs.joint_set.sigmas).slice_by(slices)
    whole = parts["_overall"] if ported else _official(inputs)
    return {name: _fraction(whole[name]) for name in METRICS}, {name: _fraction(parts[name]["AP"]) for name in slices}


def matched_images(inputs: Inputs) -> list[dict]:
    """COCO's matches, an entry for each image with a person or a result, all areas together.

    `image_id`; `dtScores` (D,) falling; `dtMatched` and `dtIgnore` (10, D) by the thresholds of OKS .5, .55, ... .95.
    """
    found = _evaluate(inputs, inputs.annotations, inputs.results, inputs.joint_set.sigmas).eval_imgs
    whole = next((entry["aRng"] for entry in found if entry), None)  # the first of the ranges holds every person
    return [entry for entry in found if entry and entry["aRng"] == whole]


def joint_ap(inputs: Inputs) -> dict[str, float | None]:
    """AP by joint name (ours): COCO's AP with the OKS of that joint alone, in [0, 1]; None if it is labelled in nobody.

    A person without a label of the joint is neither hit nor miss, as COCO's persons without any labelled joint.
    """
    found = {}
    for j, (name, sigma) in enumerate(zip(inputs.joint_set.joints, inputs.joint_set.sigmas, strict=True)):
        truth, predicted = inputs.truth[:, j].tolist(), inputs.predicted[:, j].tolist()
        annotations = [
            {**annotation, "keypoints": joint, "num_keypoints": int(joint[2] > 0)}
            for annotation, joint in zip(inputs.annotations, truth, strict=True)
        ]
        results = [{**result, "keypoints": joint} for result, joint in zip(inputs.results, predicted, strict=True)]
        parts = _evaluate(inputs, annotations, results, (sigma,)).slice_by({})
        found[name] = _fraction(parts["_overall"]["AP"])
    return found


def _official(inputs: Inputs) -> dict[str, float]:
    """The ten metrics as pycocotools gives them, -1 where there is nothing to measure."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": inputs.images, "categories": inputs.categories, "annotations": inputs.annotations}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in inputs.results]), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(inputs.joint_set.sigmas, np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, evaluation.stats.tolist(), strict=True))


def _evaluate(
    inputs: Inputs, annotations: list[dict], results: list[dict], sigmas: Sequence[float]
) -> hotcoco.COCOeval:
    """The matched persons and results; `slice_by` gives the metrics, of all images under "_overall"."""
    images = [{"id": image["id"]} for image in inputs.images]
    categories = [{"id": category["id"], "name": "person"} for category in inputs.categories]
    truth = hotcoco.COCO({"images": images, "categories": categories, "annotations": annotations})
    evaluation = hotcoco.COCOeval(truth, truth.load_res(results), "keypoints")
    evaluation.params.kpt_oks_sigmas = list(sigmas)
    evaluation.evaluate()
    return evaluation


def _fraction(value: float) -> float | None:
    return None if value < 0 else float(value)
