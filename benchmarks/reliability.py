"""How well measures of doubt rank the errors of joints."""

from collections.abc import Sequence

import jax
import numpy as np
from scipy import stats

from dpose_jax import Predictor
from dpose_jax.data.sample import Source
from dpose_jax.evaluation.coco import evaluate_results
from dpose_jax.evaluation.predict_split import Predictions, predict_split
from dpose_jax.evaluation.report import box_lengths, match_by_index, to_results
from dpose_jax.evaluation.results import without_boxes
from dpose_jax.models.pose_sampler import to_image_pixels
from dpose_jax.pose import uncertainty
from dpose_jax.recipe import Recipe


def collect(predictor: Predictor, source: Source, size: int) -> tuple[Predictions, np.ndarray, dict[str, np.ndarray]]:
    """Predictions of every person of a source, in batches of `size`, and their doubts.

    Also returns the hypotheses, (N, K, J, 2) in image pixels. The doubts, (N, J), are by the name of the measure.
    """
    run = jax.jit(predictor.sampler.poses)
    rows = predict_split(predictor.recipe, source, lambda *inputs: run(predictor.variables, *inputs), batch_size=size)
    found, sides = rows.outputs, box_lengths(source, source.ground_truth())[rows.index, None]
    covariances = uncertainty.transform_covariance(found["covariances"], rows.to_image[:, :, :2])
    hypotheses = to_image_pixels(found["hypotheses"].reshape(len(sides), -1, 2), rows.to_image)
    hypotheses = hypotheses.reshape(found["hypotheses"].shape)
    spread = uncertainty.spread(hypotheses)
    curvature = np.sqrt(np.trace(covariances, axis1=-2, axis2=-1))
    # Standard deviations in units of the box's longer side, and minus the height of the peak.
    doubts = {"spread": spread / sides, "curvature": curvature / sides, "peak": -found["scores"]}
    return rows.predictions(found["keypoints"], found["scores"]), hypotheses, doubts


def joint_errors(source: Source, predictions: Predictions) -> np.ndarray:
    """(N, J) distances to the annotated joints in units of the box's longer side; NaN where a joint is unlabelled."""
    matched = match_by_index(source, predictions, source.ground_truth())
    predicted, truth, lengths = (column[predictions.index] for column in matched)
    distance = np.linalg.norm(predicted - truth[..., :2], axis=-1) / lengths[:, None]
    return np.where(truth[..., 2] > 0, distance, np.nan)


def rank_correlation(doubt: np.ndarray, errors: np.ndarray) -> float | None:
    """Spearman's rank correlation of doubt and error, (N, J), where it is not NaN; None where either is constant."""
    labelled = np.isfinite(errors)
    some, other = np.asarray(doubt)[labelled], errors[labelled]
    if len(some) < 2 or np.ptp(some) == 0 or np.ptp(other) == 0:
        return None
    return float(stats.spearmanr(some, other).statistic)


def accuracy_without_worst(
    source: Source, predictions: Predictions, doubt: np.ndarray, shares: Sequence[float], recipe: Recipe
) -> dict[float, float | None]:
    """AP by share in [0, 1), after removing that share of persons, those of most `doubt` (N,), from both sides."""
    truth, order, found = source.ground_truth(), np.argsort(doubt, kind="stable"), {}
    for share in shares:
        kept, dropped = np.split(order, [len(order) - round(share * len(order))])
        gone = {source[int(predictions.index[row])].annotation_id for row in dropped}
        # Annotated persons that were not predicted stay, as misses.
        left = {**truth, "annotations": [entry for entry in truth["annotations"] if entry["id"] not in gone]}
        some = Predictions(*(getattr(predictions, name)[np.sort(kept)] for name in ("index", "keypoints", "scores")))
        results = to_results(source, some, recipe.joints, recipe, left["categories"][0]["id"])
        found[share] = evaluate_results(left, without_boxes(results), recipe.joints)["AP"]
    return found
