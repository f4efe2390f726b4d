"""From decoded joints to `eval.json`: person scores, suppression, AP and PCK, with the protocol beside them."""

from collections.abc import Mapping, Sequence

import numpy as np

from dpose_jax.data.sample import Person, Source
from dpose_jax.evaluation.coco import without_boxes
from dpose_jax.evaluation.metrics import Matched, score
from dpose_jax.evaluation.oks import oks_nms
from dpose_jax.evaluation.predict_split import Predictions
from dpose_jax.evaluation.results_check import BOX_AREA, check_inputs
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.recipe import Recipe
from dpose_jax.workdir.files import sha256


def score_persons(joint_scores: np.ndarray, box_scores: np.ndarray, min_joint_score: float) -> np.ndarray:
    """Person score = box score x mean of the joint scores above `min_joint_score`; 0 if none is (HRNet's rule).

    Args:
      joint_scores: (N, J).
      box_scores: (N,).
      min_joint_score: a joint counts when its score is strictly above this.

    Returns:
      (N,) float64.
    """
    joint_scores = np.asarray(joint_scores, np.float64)
    above = joint_scores > min_joint_score
    total = np.sum(joint_scores * above, axis=1)
    return np.asarray(box_scores, np.float64) * total / np.maximum(above.sum(axis=1), 1)


def crop_area(box: Sequence[float], padding: float, input_size: tuple[int, int]) -> float:
    """Area of the crop of a box, square pixels: the box grown to the input's aspect, then padded.

    HRNet compares duplicates at this scale, not at that of the box or of the person.
    """
    height, width = input_size
    wide = max(float(box[2]), float(box[3]) * width / height)
    return padding**2 * wide * (wide * height / width)


def to_results(
    persons: Source | Sequence[Person], predictions: Predictions, joint_set: JointSet, config: Recipe
) -> list[dict]:
    """COCO results of all predicted persons: scored anew, duplicates within an image suppressed.

    As in HRNet, the suppression runs with ground-truth boxes too; `config.eval.nms = 1` turns it off.

    Args:
      persons: the source that was predicted.
      predictions: joints in image pixels.
      joint_set: its sigmas serve the suppression.
      config: the recipe; `eval.min_joint_score`, `eval.nms`, `eval.soft_nms`, `crop.padding` and `input_size` are
        read.

    Returns:
      list of dicts `image_id`, `category_id` (1), `keypoints` (3J floats: x, y, joint score), `score`, `bbox` (the
      person's box) and `area` (of its crop), Python numbers; in the order of `predictions`.
    """
    chosen = [persons[int(i)] for i in predictions.index]
    scores = score_persons(predictions.scores, np.array([p.score for p in chosen]), config.eval.min_joint_score)
    rows = np.concatenate([predictions.keypoints, predictions.scores[..., None]], axis=-1).astype(np.float64)
    results = [
        {
            "image_id": int(person.image_id),
            "category_id": 1,
            "keypoints": row.ravel().tolist(),
            "score": float(score),
            "bbox": [float(v) for v in person.bbox],
            "area": crop_area(person.bbox, config.crop.padding, config.input_size),
        }
        for person, row, score in zip(chosen, rows, scores, strict=True)
    ]
    return oks_nms(results, joint_set.sigmas, config.eval.nms, soft=config.eval.soft_nms)


def needs_annotated_boxes(config: Recipe, what: str) -> None:
    """Raises ValueError, naming `what` compares persons with predictions by `match_by_index`, if boxes are detected."""
    if config.eval.boxes != "gt":
        raise ValueError(
            f"eval.boxes={config.eval.boxes!r}: {what} compares each person with its own box, which needs 'gt'"
        )


def match_by_index(persons: Source | Sequence[Person], predictions: Predictions) -> Matched:
    """Every annotated person of the source beside the prediction in its own box, for PCK.

    Every box must be an annotated one; a person without prediction is wrong in every labelled joint.
    """
    count = len(persons)
    truth = np.stack([persons[i].keypoints for i in range(count)]).astype(np.float64)
    lengths = np.array([max(persons[i].bbox[2:]) for i in range(count)], np.float64)
    predicted = np.full((*truth.shape[:2], 2), np.inf)
    predicted[predictions.index] = predictions.keypoints
    return Matched(predicted, truth, lengths)


def summarise(
    source: Source,
    predictions: Mapping[str, Predictions],
    joint_set: JointSet,
    config: Recipe,
    protocol: Mapping | None = None,
) -> tuple[dict, dict[str, list[dict]]]:
    """Evaluates every set of predictions and assembles the report that `eval.json` holds.

    Args:
      source: the persons and the ground truth of one split, and the `box_file` if they are detected. Without
        annotations there is nothing to measure: every metric is None, and the results are what counts.
      predictions: by name, in the order of the report: "coarse", "steps_1", ...; at least one.
      joint_set: of the source.
      config: the recipe (see `to_results`). With `eval.boxes` "gt" PCK looks at each person's own box; with detected
        boxes it matches persons and results, see `scores.best_assignment`.
      protocol: further facts for the report (codec, flip, ...), with JSON values.

    Returns:
      report: `{"protocol": {...}, "results": {name: {AP, ..., PCK@0.1}}, "joints": {name: {joint: {AP, PCK@0.2,
        PCK@0.1}}}, "best": {name, AP, AP50, PCK@0.2}}`, fractions in [0, 1] or None where there is nothing to measure,
        see `scores.score`; best is by AP, the first of equals.
      results: by name, the COCO results (for `write_results`).

    Raises:
      ValueError: if there are no predictions, or one does not fit the joint set or the source.
    """
    if not predictions:
        raise ValueError("predictions: at least one name is needed, got none")
    ground_truth = source.ground_truth()
    by_index = config.eval.boxes == "gt"
    metrics, joints, results = {}, {}, {}
    for name, predicted in predictions.items():
        if predicted.scores.shape[1] != joint_set.num_joints:
            raise ValueError(
                f"predictions {name!r}: have {predicted.scores.shape[1]} joints, "
                f"joint set {joint_set.name!r} has {joint_set.num_joints}"
            )
        results[name] = to_results(source, predicted, joint_set, config)
        # scored as the results file would be: boxes left out (see `without_boxes`)
        inputs = check_inputs(ground_truth, without_boxes(results[name]), joint_set)
        matched = match_by_index(source, predicted) if by_index else None
        metrics[name], joints[name] = score(inputs, matched, engine=config.eval.engine)
    best = max(metrics, key=lambda name: metrics[name]["AP"] or 0.0)
    facts = {
        "joint_set": joint_set.name,
        "boxes": config.eval.boxes,
        **({} if by_index else _detector_facts(source, config)),
        "images": len(ground_truth["images"]),
        "persons": len(source),
        "skipped": len(source) - min(len(p.index) for p in predictions.values()),
        "engine": config.eval.engine,
        "area": f"annotated, else {BOX_AREA} w h of the box" if config.data.use_area else f"{BOX_AREA} w h of the box",
        "min_joint_score": config.eval.min_joint_score,
        "nms": config.eval.nms,
        "soft_nms": config.eval.soft_nms,
        "pck_length": "longer side of the box",
        "pck_match": "each person's own box" if by_index else "best assignment by OKS",
    }
    report = {
        "protocol": {**facts, **(protocol or {})},
        "results": metrics,
        "joints": joints,
        "best": {"name": best, **{key: metrics[best][key] for key in ("AP", "AP50", "PCK@0.2")}},
    }
    return report, results


def _detector_facts(source, config: Recipe) -> dict:
    return {
        "detections": config.data.val_detections,
        "detections_sha256": sha256(source.box_file),
        "min_box_score": config.eval.min_box_score,
    }


def format_table(report: Mapping) -> str:
    """The report as text: the protocol, then one aligned row a result; a star marks the best, where one is named."""
    protocol = "  ".join(f"{key}={_short(value)}" for key, value in report["protocol"].items())
    best = report.get("best", {}).get("name")
    columns = list(dict.fromkeys(column for row in report["results"].values() for column in row))
    names = [f"{name}{' *' if name == best else ''}" for name in report["results"]]
    rows = [[_fraction(row.get(column)) for column in columns] for row in report["results"].values()]
    name_width = max(len("result"), *(len(name) for name in names))
    widths = [max(len(column), 5) for column in columns]
    lines = ["  ".join(["result".ljust(name_width), *(c.rjust(w) for c, w in zip(columns, widths, strict=True))])]
    for name, row in zip(names, rows, strict=True):
        lines.append("  ".join([name.ljust(name_width), *(v.rjust(w) for v, w in zip(row, widths, strict=True))]))
    return "\n".join([*_wrap(protocol, len(lines[0])), *lines, *(["* the best by AP"] if best else [])])


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split("  "):
        joined = f"{lines[-1]}  {word}" if lines[-1] else word
        lines = [*lines[:-1], joined] if len(joined) <= width else [*lines, word]
    return lines
