"""Ways of sampling side by side: what each costs, part by part, and how accurate it is."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from dpose_jax.data.sample import Source
from dpose_jax.diffusion.sampler import SamplerSettings, noised_start, sampler_settings
from dpose_jax.evaluation.evaluator import checked_batches
from dpose_jax.evaluation.report import Predictions, summarise
from dpose_jax.models import pose_sampler
from dpose_jax.models.diffusion_pose import DiffusionPose, build_schedule
from dpose_jax.pose import uncertainty

PARTS = ("backbone", "condition", "step", "decode")
LATENCY_PERSONS = 16  # whose crops the calls of batch 1 go round


@dataclasses.dataclass(frozen=True)
class Run:
    """A row: one way of sampling.

    Attributes:
      settings: None is the coarse branch; hypotheses: samples that are averaged.
      flip: with the flip test, if the config has it.
    """

    update: str
    steps: int
    settings: SamplerSettings | None
    hypotheses: int = 1
    flip: bool = True

    @property
    def name(self) -> str:
        """For the report of accuracies."""
        return f"{self.update}_{self.steps}"


def plan(config, steps: Sequence[int], updates: Sequence[str], restarts: int | None, early_stop: float) -> list[Run]:
    """The rows: the coarse branch once, then each update with each number of steps above 0, then the extra lines.

    Args:
      config: its sampler, but for steps and update.
      restarts: t_start of the one-step samples that are averaged, None for no such line.
      early_stop: heatmap pixels, for one more line an update; 0 for none.

    Raises:
      ValueError: if a number or name is out of range.
    """
    if not steps or min(steps) < 0 or len(set(steps)) != len(steps):
        raise ValueError(f"steps={list(steps)}: must be distinct numbers, 0 or more")
    base, some = sampler_settings(config)[0], sorted(k for k in steps if k)
    runs = [Run("coarse", 0, None)] if 0 in steps else []
    for update in updates:
        settings = dataclasses.replace(base, update_rule=update, steps=1)
        runs += [Run(update, k, dataclasses.replace(settings, steps=k)) for k in some]
        if early_stop:
            settings = dataclasses.replace(settings, early_stop=early_stop)
            runs += [Run(f"{update}, early stop", k, dataclasses.replace(settings, steps=k)) for k in some if k > 1]
    if restarts is not None:
        once = dataclasses.replace(base, steps=1, update_rule="direct")
        fresh = noised_start(once, restarts, config.diffusion.timesteps)
        runs += [Run("restarts", k, fresh, k) for k in some]
    return runs


def measure_accuracy(config, source: Source, programs: dict[Run, Callable], size: int, joint_set) -> dict[str, dict]:
    """The metrics of every run on all persons of the source, by the name of the run."""
    parts: dict[str, list] = {run.name: [] for run in programs}
    for batch in checked_batches(config, source, size):
        valid = batch["mask"] > 0
        for run, program in programs.items():
            found = jax.device_get(program(batch["image"], batch["annotation_id"]))
            moved = pose_sampler.to_image_pixels(found["keypoints"], batch["to_image"])
            parts[run.name].append((batch["index"][valid], moved[valid], found["scores"][valid]))
    columns = {name: [np.concatenate(column) for column in zip(*rows, strict=True)] for name, rows in parts.items()}
    predictions = {name: Predictions(*its) for name, its in columns.items()}
    return summarise(source, predictions, joint_set, config)[0]["results"]


def make_parts(model: DiffusionPose, variables, images: jax.Array, *, flip: bool) -> dict[str, tuple[Callable, tuple]]:
    """What a sampling run consists of, alone: (pure function, its arguments) by name of PARTS.

    With the flip test all parts see twice the persons, and `decode` averages the two halves.
    """
    images = jnp.concatenate([images, images[:, :, ::-1]]) if flip else images
    count, joints = len(images), model.joint_set.num_joints
    seen = jnp.ones((count, joints))
    like = jax.eval_shape(lambda v, x: model.apply(v, x, method="encode"), variables, images)
    features, heatmaps = (jnp.zeros(one.shape, one.dtype) for one in like)
    y = jnp.zeros((count, joints, 2))
    like = jax.eval_shape(lambda v, f, y: model.apply(v, f, y, seen, method="condition"), variables, features, y)
    context, t = jnp.zeros(like.shape, like.dtype), jnp.ones(count, jnp.int32)

    def decode(heatmaps):
        if flip:
            plain, mirrored = jnp.split(heatmaps, 2)
            turned = pose_sampler.unflip(mirrored, model.joint_set.flip_order, model.codec.flip_shift)
            heatmaps = (plain + turned) / 2
        return model.codec.decode(heatmaps), uncertainty.peak_covariance(heatmaps)

    return {
        "backbone": (lambda v, x: model.apply(v, x, method="encode"), (variables, images)),
        "condition": (lambda v, f, y: model.apply(v, f, y, seen, method="condition"), (variables, features, y)),
        "step": (lambda v, h, c, t: model.apply(v, h, c, t, method="denoise"), (variables, heatmaps, context, t)),
        "decode": (decode, (heatmaps,)),
    }


def measure_costs(config, model, variables, runs: Sequence[Run], crops: np.ndarray, seconds: float):
    """Times parts and whole runs of one batch size in turn.

    Args:
      crops: (N, B, Hx, Wx, 3) uint8: N batches, which the calls go round.

    Returns:
      {part: {"ms", "ms_low", "ms_high", "gflops"}}, and by run {"ms", "ms_low", "ms_high", "gflops", "memory_mib",
      "compile_seconds", "ratio"} and the compiled program of (images, ids). `ratio` is the median over backbone + K
      steps; FLOPs are the parts', for XLA counts the body of a scan once.
    """
    schedule, flip, size = build_schedule(config.diffusion), config.eval.flip, crops.shape[1]
    parts = make_parts(model, variables, jnp.asarray(crops[0]), flip=flip)
    compiled = {name: report.compiled(function, *inputs)[0] for name, (function, inputs) in parts.items()}
    calls = {name: _call(compiled[name], itertools.repeat(inputs)) for name, (_, inputs) in parts.items()}
    ids, programs, figures = np.arange(size, dtype=np.int32), {}, {}
    for run in runs:
        options = {"flip": flip and run.flip, "seed": config.sampler.seed, "hypotheses": run.hypotheses}
        function = pose_sampler.make_poses(model, schedule, run.settings, **options)
        executable, took = report.compiled(function, variables, crops[0], ids)
        memory = executable.memory_analysis()
        used = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20
        figures[run] = {"memory_mib": round(used, 1), "compile_seconds": round(took, 1)}
        programs[run] = _bound(executable, variables)
        calls[run] = _call(executable, itertools.cycle([(variables, batch, ids) for batch in crops]))
    timings = report.measure(calls, seconds=seconds)
    flops = {name: _gflops(executable) for name, executable in compiled.items()}
    costs = {name: _milliseconds(timings[name]) | {"gflops": flops[name]} for name in PARTS}
    for run in runs:
        total = flops["decode"] + _of_network(run, flops, flip)
        ratio = timings[run].median / _of_network(run, {name: timings[name].median for name in PARTS}, flip)
        figures[run] |= _milliseconds(timings[run]) | {"gflops": round(total, 3), "ratio": round(ratio, 3)}
    return costs, figures, programs


def _of_network(run: Run, part: dict[str, float], flip: bool) -> float:
    """What the networks of a run cost, from the cost of each part."""
    encoded = 0.5 if flip and not run.flip else 1.0
    if run.settings is None:
        return encoded * part["backbone"]
    denoised = encoded if run.settings.mirrored or not flip else 0.5
    conditions = run.settings.steps if run.settings.refresh else 1
    sample = conditions * part["condition"] + run.settings.steps * part["step"]
    return encoded * part["backbone"] + denoised * run.hypotheses * sample


def _call(executable: Callable, inputs) -> Callable:
    return lambda: executable(*next(inputs))


def _bound(executable: Callable, variables) -> Callable:
    return lambda images, ids: executable(variables, images, ids)


def _milliseconds(timing: report.Timing) -> dict[str, float]:
    seconds = {"ms": timing.median, "ms_low": timing.low, "ms_high": timing.high}
    return {name: round(1e3 * value, 3) for name, value in seconds.items()}


def _gflops(executable) -> float:
    analysis = executable.cost_analysis()
    first = analysis[0] if isinstance(analysis, list) else analysis
    return first.get("flops", 0.0) / 1e9
