"""Ways of sampling side by side: what each costs, part by part, and what it predicts."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from dpose_jax.data.sample import Source
from dpose_jax.diffusion.sampler import SamplerSettings, noised_start, sampler_settings
from dpose_jax.evaluation.evaluator import checked_batches
from dpose_jax.evaluation.report import Predictions
from dpose_jax.models.diffusion_pose import DiffusionPose, build_schedule
from dpose_jax.models.pose_sampler import PoseSampler, to_image_pixels, unflip
from dpose_jax.pose import uncertainty
from dpose_jax.recipe import Recipe

PARTS = ("backbone", "condition", "step", "decode")
LATENCY_PERSONS = 16  # whose crops the calls of batch 1 cycle through


@dataclasses.dataclass(frozen=True)
class Sampling:
    """One way of sampling.

    Attributes:
      update, steps: its name: `coarse`, `direct`, `ddim`, `restarts`, ..., and K.
      settings: of the sampler; None is the coarse branch.
      hypotheses: samples that are averaged.
      flip: with the flip test, if the recipe has it.
    """

    update: str
    steps: int
    settings: SamplerSettings | None
    hypotheses: int = 1
    flip: bool = True


def plan(recipe: Recipe, steps: Sequence[int], updates: Sequence[str], noise_time: int | None) -> list[Sampling]:
    """The coarse branch for K = 0, then each update with each K above 0, then the restarts.

    Args:
      recipe: gives all of the sampler but steps and update.
      noise_time: t_start of the one-step samples that are averaged; None for no restarts.

    Raises:
      ValueError: if a number or name is out of range.
    """
    if not steps or min(steps) < 0 or len(set(steps)) != len(steps):
        raise ValueError(f"steps={list(steps)}: must be distinct numbers, 0 or more")
    base, some = sampler_settings(recipe.sampler)[0], sorted(k for k in steps if k)
    found = [Sampling("coarse", 0, None)] if 0 in steps else []
    for update in updates:
        found += [Sampling(update, k, dataclasses.replace(base, update_rule=update, steps=k)) for k in some]
    if noise_time is not None:
        once = dataclasses.replace(base, steps=1, update_rule="direct")
        fresh = noised_start(once, noise_time, recipe.diffusion.timesteps)
        found += [Sampling("restarts", k, fresh, hypotheses=k) for k in some]
    return found


def predict(recipe: Recipe, source: Source, programs: Iterable[Callable], size: int) -> dict[Any, Predictions]:
    """Predictions of all persons of the source, in batches of `size`, by name.

    Args:
      programs: of `(crops, person_ids) -> {name: (keypoints (B, J, 2) in crop pixels, scores (B, J))}`.
    """
    parts: dict[Any, list] = {}
    for batch in checked_batches(recipe, source, size):
        valid = batch["mask"] > 0
        for program in programs:
            found = jax.device_get(program(batch["image"], batch["annotation_id"]))
            for name, (keypoints, scores) in found.items():
                moved = to_image_pixels(keypoints, batch["to_image"])
                parts.setdefault(name, []).append((batch["index"][valid], moved[valid], scores[valid]))
    return {name: Predictions(*map(np.concatenate, zip(*rows, strict=True))) for name, rows in parts.items()}


def make_parts(model: DiffusionPose, variables, crops: jax.Array, *, flip: bool) -> dict[str, tuple[Callable, tuple]]:
    """The parts of a sampling run: (pure function, its arguments) by name of PARTS.

    With the flip test all parts see twice the persons, and `decode` averages the two halves.
    """
    crops = jnp.concatenate([crops, crops[:, :, ::-1]]) if flip else crops
    count, joints = len(crops), model.joint_set.num_joints

    def encode(variables, crops):
        return model.apply(variables, crops, method="encode")

    def condition(variables, features, y):
        return model.apply(variables, features, y, jnp.ones((count, joints)), method="condition")

    def denoise(variables, heatmaps, context, t):
        return model.apply(variables, heatmaps, context, t, method="denoise")

    def decode(heatmaps):
        if flip:
            plain, mirrored = jnp.split(heatmaps, 2)
            heatmaps = (plain + unflip(mirrored, model.joint_set.flip_order, model.codec.flip_shift)) / 2
        return model.codec.decode(heatmaps), uncertainty.peak_covariance(heatmaps)

    def zeros(function, *inputs):
        return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(function, *inputs))

    features, heatmaps = zeros(encode, variables, crops)
    y, t = jnp.zeros((count, joints, 2)), jnp.ones(count, jnp.int32)
    context = zeros(condition, variables, features, y)
    return {
        "backbone": (encode, (variables, crops)),
        "condition": (condition, (variables, features, y)),
        "step": (denoise, (variables, heatmaps, context, t)),
        "decode": (decode, (heatmaps,)),
    }


def measure_costs(
    recipe: Recipe, model: DiffusionPose, variables, samplings: Sequence[Sampling], crops: np.ndarray, seconds: float
) -> tuple[dict[str, dict], dict[Sampling, dict], dict[Sampling, Callable]]:
    """Times parts and whole sampling runs of one batch size in turn.

    Args:
      crops: (N, B, Hx, Wx, 3) uint8: N batches, which the calls cycle through.

    Returns:
      {part: {"ms", "ms_low", "ms_high", "gflops"}}; by sampling {"ms", "ms_low", "ms_high", "gflops", "memory_mib",
      "compile_seconds", "ratio"}; and its compiled program, `PoseSampler.poses` of (crops, person_ids). `ratio` is the
      median over backbone + K steps. FLOPs are the parts', because XLA counts the body of a scan once.
    """
    schedule, flip, size = build_schedule(recipe.diffusion), recipe.eval.flip, crops.shape[1]
    parts = make_parts(model, variables, jnp.asarray(crops[0]), flip=flip)
    compiled = {name: report.compiled(function, *inputs)[0] for name, (function, inputs) in parts.items()}
    calls = {name: _call(compiled[name], itertools.repeat(inputs)) for name, (_, inputs) in parts.items()}
    ids, programs, figures = np.arange(size, dtype=np.int32), {}, {}
    for one in samplings:
        settings = () if one.settings is None else (one.settings,)
        sampler = PoseSampler(model, schedule, settings, flip and one.flip, recipe.sampler.seed, one.hypotheses)
        executable, took = report.compiled(sampler.poses, variables, crops[0], ids)
        memory = executable.memory_analysis()
        used = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20
        figures[one] = {"memory_mib": round(used, 1), "compile_seconds": round(took, 1)}
        programs[one] = _bound(executable, variables)
        calls[one] = _call(executable, itertools.cycle([(variables, batch, ids) for batch in crops]))
    timings = report.measure(calls, seconds=seconds)
    flops = {name: _gflops(executable) for name, executable in compiled.items()}
    costs = {name: _milliseconds(timings[name]) | {"gflops": flops[name]} for name in PARTS}
    for one in samplings:
        total = flops["decode"] + _of_network(one, flops, flip)
        ratio = timings[one].median / _of_network(one, {name: timings[name].median for name in PARTS}, flip)
        figures[one] |= _milliseconds(timings[one]) | {"gflops": round(total, 3), "ratio": round(ratio, 3)}
    return costs, figures, programs


def _of_network(one: Sampling, part: Mapping[str, float], flip: bool) -> float:
    """The cost of the networks of a sampling run, from the cost of each part."""
    encoded = 0.5 if flip and not one.flip else 1.0
    if one.settings is None:
        return encoded * part["backbone"]
    denoised = encoded if one.settings.mirrored or not flip else 0.5
    conditions = one.settings.steps if one.settings.refresh else 1
    sample = conditions * part["condition"] + one.settings.steps * part["step"]
    return encoded * part["backbone"] + denoised * one.hypotheses * sample


def _call(executable: Callable, inputs) -> Callable:
    return lambda: executable(*next(inputs))


def _bound(executable: Callable, variables) -> Callable:
    return lambda crops, ids: executable(variables, crops, ids)


def _milliseconds(timing: report.Timing) -> dict[str, float]:
    seconds = {"ms": timing.median, "ms_low": timing.low, "ms_high": timing.high}
    return {name: round(1e3 * value, 3) for name, value in seconds.items()}


def _gflops(executable) -> float:
    analysis = executable.cost_analysis()
    first = analysis[0] if isinstance(analysis, list) else analysis
    return first.get("flops", 0.0) / 1e9
