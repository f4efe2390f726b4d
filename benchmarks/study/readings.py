"""What is read from a trained run: every way of sampling it, decoded with DARK and without."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from benchmarks.sampling import LATENCY_PERSONS, Sampling, measure_costs
from benchmarks.study.tables import Reading, Row
from benchmarks.study.variants import Variant, samplings_of
from dpose_jax.data.loader import eval_batches
from dpose_jax.data.sample import Source
from dpose_jax.evaluation.metrics import PCK_THRESHOLDS
from dpose_jax.evaluation.oks import pck
from dpose_jax.evaluation.report import Predictions, match_by_index, summarise
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import initial_variables
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Recipe

REFINES = ("dark", "none")
VISIBILITIES = {1: "occluded", 2: "visible"}


def make_readers(recipe: Recipe, variant: Variant, steps: Sequence[int], noise_time: int) -> list[Callable]:
    """Pure functions `(variables, crops, person_ids) -> {Reading: (keypoints (B, J, 2), scores (B, J))}`, crop pixels.

    `restarts` with K decodes the mean of the heatmaps of K independent samples.
    """
    model, schedule = build_model(recipe), build_schedule(recipe.diffusion)
    codecs = [dataclasses.replace(model.codec, refine=refine) for refine in REFINES]

    def reader(samplings: Sequence[Sampling]) -> Callable:
        hypotheses = max(one.hypotheses for one in samplings)
        # Restarts are all the same run, with more and more of its samples.
        settings = tuple(dict.fromkeys(one.settings for one in samplings if one.settings is not None))
        flip = recipe.eval.flip and all(one.flip for one in samplings)
        sampler = PoseSampler(model, schedule, settings, flip, recipe.sampler.seed, hypotheses)

        def read(variables, crops, person_ids):
            heatmaps, found = sampler.heatmaps(variables, crops, person_ids), {}
            for one in samplings:
                maps = heatmaps[f"steps_{one.settings.steps}" if one.settings else "coarse"]
                mean = maps[:, : one.hypotheses].mean(axis=1) if hypotheses > 1 else maps
                found |= {Reading(one.update, one.steps, codec.refine): codec.decode(mean) for codec in codecs}
            return found

        return read

    return [reader(samplings) for samplings in samplings_of(recipe, variant, steps, noise_time).values()]


def score(
    recipe: Recipe, source: Source, found: dict[Reading, Predictions]
) -> tuple[dict[Reading, Row], dict[Reading, list[Row]]]:
    """The metrics of every reading, and those of each joint.

    Returns:
      by reading: the metrics of `report.summarise` and PCK by visibility, `PCK@0.2 occluded`, None where no joint is;
      by reading: for AP and PCK a row `metric` with the value of every joint.
    """
    report, _ = summarise(source, found, build_model(recipe).joint_set, recipe)
    metrics = {reading: its | by_visibility(source, found[reading]) for reading, its in report["results"].items()}
    joints = {
        reading: [
            {"metric": metric} | {joint: its[metric] for joint, its in by_joint.items()}
            for metric in next(iter(by_joint.values()))
        ]
        for reading, by_joint in report["joints"].items()
    }
    return metrics, joints


def by_visibility(source: Source, predictions: Predictions) -> Row:
    """PCK of the occluded and of the visible joints, at each threshold."""
    predicted, truth, lengths = match_by_index(source, predictions)
    return {
        f"PCK@{threshold} {name}": pck(predicted, truth[..., :2], truth[..., 2] == value, lengths, threshold)[0]
        for threshold in PCK_THRESHOLDS
        for value, name in VISIBILITIES.items()
    }


def latency(
    recipe: Recipe, variant: Variant, source: Source, steps: Sequence[int], noise_time: int, seconds: float
) -> dict[tuple[str, int], float]:
    """Median milliseconds for one person of every (update, K), timed in turn with random weights.

    Args:
      seconds: to spend on timing each program.
    """
    every = [one for its in samplings_of(recipe, variant, steps, noise_time).values() for one in its]
    crops = next(iter(eval_batches(recipe, source, LATENCY_PERSONS)))["image"][:, None]
    model = build_model(recipe)
    variables = jax.device_put(initial_variables(model, 0))
    _, figures, _ = measure_costs(recipe, model, variables, every, np.asarray(crops), seconds)
    return {(one.update, one.steps): figures[one]["ms"] for one in every}
