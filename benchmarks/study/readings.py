"""What is read from a trained run: every way of sampling it, decoded with DARK and without."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from benchmarks.sampling import Sampling, plan, sampler_of
from benchmarks.study.tables import Reading, Row
from benchmarks.study.variants import Variant
from dpose_jax.data.sample import Source
from dpose_jax.evaluation.metrics import PCK_THRESHOLDS
from dpose_jax.evaluation.oks import pck
from dpose_jax.evaluation.predict_split import Predictions
from dpose_jax.evaluation.report import match_by_index, summarise
from dpose_jax.recipe import Recipe

REFINES = ("dark", "none")
VISIBILITIES = {1: "occluded", 2: "visible"}


def samplings_of(recipe: Recipe, variant: Variant, steps: Sequence[int], noise_time: int) -> list[Sampling]:
    """The ways in which a variant is sampled: the coarse branch, then each of its updates."""
    some = [k for k in steps if variant.most_steps is None or k <= variant.most_steps]
    return plan(recipe, [0, *some], variant.updates, noise_time)


def make_readers(recipe: Recipe, variant: Variant, steps: Sequence[int], noise_time: int) -> list[Callable]:
    """Pure `(variables, crops, person_ids) -> {Reading: (keypoints (B, J, 2), scores (B, J))}`, in crop pixels."""

    def reader(samplings: Sequence[Sampling]) -> Callable:
        sampler = sampler_of(recipe, samplings)
        codecs = [dataclasses.replace(sampler.model.codec, refine=refine) for refine in REFINES]

        def read(variables, crops, person_ids):
            heatmaps, found = sampler.heatmaps(variables, crops, person_ids), {}
            for one in samplings:
                maps = heatmaps[f"steps_{one.settings.steps}" if one.settings else "coarse"]
                mean = maps[:, : one.hypotheses].mean(axis=1) if sampler.hypotheses > 1 else maps
                found |= {Reading(one.update, one.steps, codec.refine): codec.decode(mean) for codec in codecs}
            return found

        return read

    every = samplings_of(recipe, variant, steps, noise_time)
    return [reader(list(its)) for _, its in itertools.groupby(every, key=lambda one: one.update)]


def score(
    recipe: Recipe, source: Source, found: dict[Reading, Predictions]
) -> tuple[dict[Reading, Row], dict[Reading, list[Row]]]:
    """The metrics of `summarise` and PCK by visibility, `PCK@0.2 occluded`, None without such joints; by reading.

    And rows by reading: for each `metric` of AP and PCK, the value of every joint.
    """
    report, _ = summarise(source, found, recipe.joints, recipe)
    metrics, joints = {}, {}
    for reading, predictions in found.items():
        predicted, truth, lengths = match_by_index(source, predictions)
        metrics[reading] = report["results"][reading] | {
            f"PCK@{threshold} {name}": pck(predicted, truth[..., :2], truth[..., 2] == value, lengths, threshold)[0]
            for threshold in PCK_THRESHOLDS
            for value, name in VISIBILITIES.items()
        }
        by_joint = report["joints"][reading]
        names = next(iter(by_joint.values()))
        joints[reading] = [{"metric": name} | {joint: its[name] for joint, its in by_joint.items()} for name in names]
    return metrics, joints
