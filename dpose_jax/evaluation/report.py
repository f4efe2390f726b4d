"""From decoded joints to `eval.json`: suppression of duplicates, metrics, and the protocol beside them."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from dpose_jax.data.coco_format import BOX_AREA
from dpose_jax.data.sample import PERSON_CATEGORY, Person, Source
from dpose_jax.evaluation.mean_pose import score_mean_pose
from dpose_jax.evaluation.metrics import PCK_LENGTH, Matched, score
from dpose_jax.evaluation.oks import oks_nms
from dpose_jax.evaluation.predict_split import Predictions
from dpose_jax.evaluation.results import make_results, score_persons, without_boxes
from dpose_jax.evaluation.results_check import check_inputs
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.recipe import Recipe


def to_results(
    persons: Source | Sequence[Person],
    predictions: Predictions,
    joint_set: JointSet,
    recipe: Recipe,
    category_id: int = PERSON_CATEGORY,
) -> list[dict]:
    """COCO results (see `make_results`) in the order of `predictions`, scored anew, without duplicates in an image.

    As in HRNet, the suppression runs with ground-truth boxes too; `eval.nms = 1` turns it off.
    """
    chosen = [persons[int(i)] for i in predictions.index]
    box_scores = np.array([person.score for person in chosen])
    scores = score_persons(predictions.scores, box_scores, recipe.eval.min_joint_score)
    image_ids, boxes = [person.image_id for person in chosen], np.array([person.bbox for person in chosen])
    results = make_results(image_ids, boxes, predictions.keypoints, predictions.scores, scores, recipe, category_id)
    return oks_nms(results, joint_set.sigmas, recipe.eval.nms, soft=recipe.eval.soft_nms)


def needs_annotated_boxes(recipe: Recipe, what: str) -> None:
    """Raises ValueError, naming `what` needs `match_by_index`, if boxes are detected."""
    if recipe.eval.boxes != "gt":
        reason = f"{what} compares each person with its own box, which needs 'gt'"
        raise ValueError(f"eval.boxes={recipe.eval.boxes!r}: {reason}")


def match_by_index(persons: Source | Sequence[Person], predictions: Predictions, ground_truth: dict) -> Matched:
    """Every annotated person of the source beside the prediction in its own box, for PCK.

    Every box must be an annotated one, and the ground truth the source's; a person without prediction is wrong in every
    labelled joint.
    """
    everyone = [persons[i] for i in range(len(persons))]
    truth = np.stack([person.keypoints for person in everyone]).astype(np.float64)
    predicted = np.full((*truth.shape[:2], 2), np.inf)
    predicted[predictions.index] = predictions.keypoints
    return Matched(predicted, truth, box_lengths(everyone, ground_truth))


def box_lengths(persons: Source | Sequence[Person], ground_truth: dict) -> np.ndarray:
    """(N,) float64 PCK_LENGTH of every person of a source, image pixels; `Person.bbox` is clipped to the image."""
    lengths = {entry["id"]: max(entry["bbox"][2:]) for entry in ground_truth["annotations"]}
    return np.array([lengths[persons[i].annotation_id] for i in range(len(persons))], np.float64)


def summarise(
    source: Source,
    predictions: Mapping[str, Predictions],
    joint_set: JointSet,
    recipe: Recipe,
    protocol: Mapping | None = None,
) -> tuple[dict, dict[str, list[dict]]]:
    """Evaluates predictions by result name: the report that `eval.json` holds, and the COCO results by name.

    The report is `{"protocol": {...}, "results": {name: {AP, ..., PCK@0.1}}, "joints": {name: {joint: {AP, PCK@0.2,
    PCK@0.1}}}, "mean_pose": {AP, ..., PCK@0.1}, "best": {name, AP, AP50, PCK@0.2}}`, see `metrics.score` and
    `mean_pose.score_mean_pose`; best is by AP, the first of equals. PCK compares each person with the prediction in its
    own box; with detected boxes see `metrics.best_assignment`.

    The source has a `box_sha256` if the boxes are detected; without annotations every metric is None. `protocol` (JSON
    values) joins the report's. Raises ValueError if there are no predictions, or one does not fit joint set or source.
    """
    if not predictions:
        raise ValueError("predictions: at least one name is needed, got none")
    ground_truth, by_index = source.ground_truth(), recipe.eval.boxes == "gt"
    category_id = ground_truth["categories"][0]["id"]
    metrics, joints, results = {}, {}, {}
    for name, predicted in predictions.items():
        if predicted.scores.shape[1] != joint_set.num_joints:
            found, known = predicted.scores.shape[1], f"joint set {joint_set.name!r} has {joint_set.num_joints}"
            raise ValueError(f"predictions {name!r}: have {found} joints, {known}")
        results[name] = to_results(source, predicted, joint_set, recipe, category_id)
        # scored as the results file would be: boxes left out (see `without_boxes`)
        inputs = check_inputs(ground_truth, without_boxes(results[name]), joint_set)
        matched = match_by_index(source, predicted, ground_truth) if by_index else None
        metrics[name], joints[name] = score(inputs, matched, engine=recipe.eval.engine)
    best = max(metrics, key=lambda name: metrics[name]["AP"] or 0.0)
    report = {
        "protocol": {
            "joint_set": joint_set.name,
            "boxes": recipe.eval.boxes,
            **({} if by_index else _detector_metadata(source, recipe)),
            "images": len(ground_truth["images"]),
            "persons": len(source),
            "skipped": len(source) - min(len(p.index) for p in predictions.values()),
            "engine": recipe.eval.engine,
            "area": f"{'annotated, else ' if recipe.data.use_area else ''}{BOX_AREA} w h of the box",
            "min_joint_score": recipe.eval.min_joint_score,
            "nms": recipe.eval.nms,
            "soft_nms": recipe.eval.soft_nms,
            "pck_length": PCK_LENGTH,
            "pck_match": "each person's own box" if by_index else "best assignment by OKS",
            **(protocol or {}),
        },
        "results": metrics,
        "joints": joints,
        "mean_pose": score_mean_pose(inputs, engine=recipe.eval.engine),
        "best": {"name": best, **{key: metrics[best][key] for key in ("AP", "AP50", "PCK@0.2")}},
    }
    return report, results


def _detector_metadata(source, recipe: Recipe) -> dict:
    return {
        "detections": recipe.data.val_detections,
        "detections_sha256": source.box_sha256,
        "min_box_score": recipe.eval.min_box_score,
    }


def format_table(report: Mapping) -> str:
    """The report as text: the protocol, one aligned row a result, the mean pose. A star marks the best, if named."""
    best = report.get("best", {}).get("name")
    rows = report["results"] | ({"mean pose": report["mean_pose"]} if "mean_pose" in report else {})
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = [["result", *columns]]
    for name, row in rows.items():
        values = [row.get(column) for column in columns]
        marked = f"{name} *" if name == best else name
        table.append([marked, *("-" if value is None else f"{value:.3f}" for value in values)])
    widths = [max(5, *map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    shown = {key: f"{value:g}" if isinstance(value, float) else value for key, value in report["protocol"].items()}
    wrapped = textwrap.wrap("  ".join(f"{key}={value}" for key, value in shown.items()), len(lines[0]))
    return "\n".join([*wrapped, *lines, *(["* the best by AP"] if best else [])])
