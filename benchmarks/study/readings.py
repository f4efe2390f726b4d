"""What is read from a trained arm of the study: every way of sampling it, with and without DARK."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from benchmarks.sampling import LATENCY_PERSONS, Run, measure_costs
from benchmarks.study.variants import Arm, lines_of
from dpose_jax.data.loader import eval_batches
from dpose_jax.data.sample import Source
from dpose_jax.evaluation.evaluator import checked_batches
from dpose_jax.evaluation.metrics import PCK_THRESHOLDS
from dpose_jax.evaluation.oks import pck
from dpose_jax.evaluation.report import Predictions, match_by_index, summarise
from dpose_jax.models import pose_sampler
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import initial_variables

REFINES = ("dark", "none")
VISIBILITIES = {1: "occluded", 2: "visible"}


def make_readings(config, arm: Arm, steps: Sequence[int], noise_time: int) -> dict[str, Callable]:
    """Pure functions from `(variables, images, ids)` to {(reading, refine): (joints (B, J, 2), scores (B, J))}.

    Readings are `coarse`, and of each line of the arm `LINE_K`; joints are in crop pixels. `restarts_K` decodes
    the mean of the heatmaps of K independent samples.
    """
    model, schedule = build_model(config), build_schedule(config.diffusion)
    codecs = {refine: dataclasses.replace(model.codec, refine=refine) for refine in REFINES}
    seed = config.sampler.seed

    def decoded(named):
        return {(name, refine): codec.decode(maps) for name, maps in named.items() for refine, codec in codecs.items()}

    def line(runs):
        hypotheses = max(run.hypotheses for run in runs)
        # Restarts are all the same run, with more and more of its samples.
        settings = tuple(dict.fromkeys(run.settings for run in runs if run.settings is not None))
        flip = config.eval.flip and all(run.flip for run in runs)
        heatmaps_of = pose_sampler.make_heatmaps(model, schedule, settings, flip=flip, seed=seed, hypotheses=hypotheses)

        def read(variables, images, ids):
            found = heatmaps_of(variables, images, ids)
            maps = {run: found[f"steps_{run.settings.steps}" if run.settings else "coarse"] for run in runs}
            if hypotheses > 1:
                maps = {run: samples[:, : run.hypotheses].mean(axis=1) for run, samples in maps.items()}
            return decoded({run.name: mean for run, mean in maps.items()})

        return read

    heatmaps_of = pose_sampler.make_heatmaps(model, schedule, (), flip=config.eval.flip, seed=seed)

    def coarse(variables, images, ids):
        return decoded(heatmaps_of(variables, images, ids))

    return {"coarse": coarse} | {
        name: line(runs) for name, runs in lines_of(config, arm, steps, noise_time).items() if runs
    }


def predict(
    config, arm: Arm, variables, source: Source, steps: Sequence[int], noise_time: int
) -> dict[str, Predictions]:
    """Every reading of all persons of the source, by reading and refinement (`direct_2`, `direct_2 without DARK`)."""
    functions = {name: jax.jit(function) for name, function in make_readings(config, arm, steps, noise_time).items()}
    parts: dict[str, list] = {}
    for batch in checked_batches(config, source, config.eval.batch_size):
        valid = batch["mask"] > 0
        for function in functions.values():
            for (name, refine), (joints, scores) in jax.device_get(
                function(variables, batch["image"], batch["annotation_id"])
            ).items():
                moved = pose_sampler.to_image_pixels(joints, batch["to_image"])
                label = name if refine == "dark" else f"{name} without DARK"
                parts.setdefault(label, []).append((batch["index"][valid], moved[valid], scores[valid]))
    return {name: Predictions(*map(np.concatenate, zip(*rows, strict=True))) for name, rows in parts.items()}


def score(config, source: Source, found: dict[str, Predictions]) -> dict[str, dict]:
    """The metrics of every reading.

    Returns:
      by reading: the metrics of `protocol.summarise`, `joints`, the same joint by joint, and PCK by visibility,
      `PCK@0.2 occluded`, None where no joint is.
    """
    report, _ = summarise(source, found, build_model(config).joint_set, config)
    return {
        name: metrics | by_visibility(source, found[name]) | {"joints": report["joints"][name]}
        for name, metrics in report["results"].items()
    }


def by_visibility(source: Source, predictions: Predictions) -> dict[str, float | None]:
    """PCK of the occluded and of the visible joints, at each threshold."""
    predicted, truth, lengths = match_by_index(source, predictions)
    return {
        f"PCK@{threshold} {name}": pck(predicted, truth[..., :2], truth[..., 2] == value, lengths, threshold)[0]
        for threshold in PCK_THRESHOLDS
        for value, name in VISIBILITIES.items()
    }


def latency(
    config, arm: Arm, source: Source, steps: Sequence[int], noise_time: int, seconds: float
) -> dict[str, dict[str, float]]:
    """What each reading costs for one person, with random weights, for no weight changes that.

    Args:
      seconds: to spend on timing each program.

    Returns:
      by reading: `ms`, the median, and `times_plain`, that over the coarse branch's, which took turns with it.
    """
    runs = {"coarse": Run("coarse", 0, None)}
    runs |= {run.name: run for line in lines_of(config, arm, steps, noise_time).values() for run in line}
    crops = next(iter(eval_batches(config, source, LATENCY_PERSONS)))["image"][:, None]
    model = build_model(config)
    variables = jax.device_put(initial_variables(model, 0))
    _, figures, _ = measure_costs(config, model, variables, list(runs.values()), crops, seconds)
    ms = {name: figures[run]["ms"] for name, run in runs.items()}
    return {name: {"ms": value, "times_plain": round(value / ms["coarse"], 3)} for name, value in ms.items()}
