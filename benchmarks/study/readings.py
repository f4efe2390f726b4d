"""What is read from a trained run: every way of sampling it, decoded with DARK and without."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from benchmarks.sampling import Sampling, plan
from benchmarks.study.tables import Reading, Row
from benchmarks.study.variants import Variant
from dpose_jax.data.sample import Source
from dpose_jax.evaluation.metrics import PCK_THRESHOLDS
from dpose_jax.evaluation.oks import pck
from dpose_jax.evaluation.predict_split import Predictions
from dpose_jax.evaluation.report import match_by_index, summarise
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Recipe

REFINES = ("dark", "none")
VISIBILITIES = {1: "occluded", 2: "visible"}


def samplings_of(recipe: Recipe, variant: Variant, steps: Sequence[int], noise_time: int) -> list[Sampling]:
    """The ways in which a variant is sampled: the coarse branch, then each of its updates."""
    some = [k for k in steps if variant.most_steps is None or k <= variant.most_steps]
    return plan(recipe, [0, *some], variant.updates, noise_time)


def make_readers(recipe: Recipe, variant: Variant, steps: Sequence[int], noise_time: int) -> list[Callable]:
    """Pure `(variables, crops, person_ids) -> {Reading: (keypoints (B, J, 2), scores (B, J))}`, in crop pixels."""
    model, schedule = build_model(recipe), build_schedule(recipe.diffusion)
    codecs = [dataclasses.replace(model.codec, refine=refine) for refine in REFINES]

    def reader(samplings: Sequence[Sampling]) -> Callable:
        hypotheses = max(one.hypotheses for one in samplings)
        # Restarts are all the same run; K of them are the mean of the heatmaps of its first K samples.
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

    every = samplings_of(recipe, variant, steps, noise_time)
    return [reader(list(its)) for _, its in itertools.groupby(every, key=lambda one: one.update)]


def score(
    recipe: Recipe, source: Source, found: dict[Reading, Predictions]
) -> tuple[dict[Reading, Row], dict[Reading, list[Row]]]:
    """The metrics of every reading, and a row `metric` with the value of every joint for each of AP and PCK.

    The metrics are those of `report.summarise` and PCK by visibility, `PCK@0.2 occluded`, None where no joint is.
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
