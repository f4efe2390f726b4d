"""Ways of sampling side by side, and what each costs."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from benchmarks import report
from dpose_jax.data.sample import Source
from dpose_jax.diffusion.sampler import SamplerSettings, noised_start, sampler_settings
from dpose_jax.evaluation.predict_split import predict_split
from dpose_jax.evaluation.report import summarise
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Recipe

# The changed settings of each. The paper's update; DDIM on coordinates (ours); the mean of K one-step samples from
# independently noised starts; and `direct` at less cost: without denoising the mirrored crop, without the flip test.
UPDATES: dict[str, dict] = {"direct": {}, "ddim": {"update_rule": "ddim"}, "restarts": {}}
UPDATES |= {"unmirrored": {"mirrored": False}, "unflipped": {}}
LATENCY_PERSONS = 16  # whose crops the calls of batch 1 cycle through


@dataclasses.dataclass(frozen=True)
class Sampling:
    """One way of sampling."""

    update: str  # `coarse`, or one of UPDATES
    steps: int
    settings: SamplerSettings | None  # None is the coarse branch
    hypotheses: int = 1  # samples that are averaged
    flip: bool = True  # with the flip test, if the recipe has it


def sampler_of(recipe: Recipe, samplings: Sequence[Sampling]) -> PoseSampler:
    """The sampler that serves all of `samplings`, which share one pass of the backbone."""
    # Restarts are all the same run; K of them are the mean of the heatmaps of its first K samples.
    settings = tuple(dict.fromkeys(one.settings for one in samplings if one.settings))
    flip, hypotheses = recipe.eval.flip and all(one.flip for one in samplings), max(one.hypotheses for one in samplings)
    return dataclasses.replace(PoseSampler.of(recipe), settings=settings, flip=flip, hypotheses=hypotheses)


def plan(recipe: Recipe, steps: Sequence[int], updates: Iterable[str], noise_time: int) -> list[Sampling]:
    """The coarse branch for K = 0, then each update with each K above 0; ValueError if an argument is out of range."""
    if not steps or min(steps) < 0 or len(set(steps)) != len(steps):
        raise ValueError(f"steps={list(steps)}: must be distinct numbers, 0 or more")
    direct = dataclasses.replace(sampler_settings(recipe.sampler)[0], steps=1, update_rule="direct")
    found = [Sampling("coarse", 0, None)] if 0 in steps else []
    for update in updates:
        if update not in UPDATES:
            raise ValueError(f"update={update!r}: must be one of {', '.join(UPDATES)}")
        if update == "unflipped" and 0 in steps:
            found.append(Sampling(update, 0, None, flip=False))
        for k in sorted(set(steps) - {0}):
            if update == "restarts":
                start = noised_start(direct, noise_time, recipe.diffusion.timesteps)
                found.append(Sampling(update, k, start, hypotheses=k))
            else:
                one = dataclasses.replace(direct, steps=k, **UPDATES[update])
                found.append(Sampling(update, k, one, flip=update != "unflipped"))
    return found


def measure_accuracy(recipe: Recipe, source: Source, programs: Mapping[Sampling, Callable], size: int) -> dict:
    """The metrics by Sampling, of all persons of the source, in batches of `size`."""
    persons = predict_split(recipe, source, lambda *its: [run(*its) for run in programs.values()], batch_size=size)
    found = dict(zip(programs, persons.outputs, strict=True))
    predictions = {one: persons.predictions(its["keypoints"], its["scores"]) for one, its in found.items()}
    return summarise(source, predictions, recipe.joints, recipe)[0]["results"]


def measure_costs(
    recipe: Recipe, variables, samplings: Sequence[Sampling], crops: np.ndarray, seconds: float
) -> tuple[dict[Sampling, dict[str, float]], dict[Sampling, Callable]]:
    """The figures and the compiled program, `poses` of (crops, person_ids), of each; crops (N, B, Hx, Wx, 3) uint8."""
    # Timed in turn, `seconds` each, on the N batches again and again.
    ids, calls, programs, figures = np.arange(crops.shape[1], dtype=np.int32), {}, {}, {}
    for one in tqdm(samplings, desc=f"compile, batch {crops.shape[1]}"):
        executable, took = report.compiled(sampler_of(recipe, [one]).poses, variables, crops[0], ids)
        memory = executable.memory_analysis()  # type: ignore[attr-defined]
        used = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20
        figures[one] = {"memory_mib": round(used, 1), "compile_seconds": round(took, 1)}
        programs[one] = functools.partial(executable, variables)
        runs = map(programs[one], itertools.cycle(crops), itertools.repeat(ids))  # each `next` is a call
        calls[one] = functools.partial(next, runs)
    print(f"timing {len(calls)} programs of batch {crops.shape[1]}, {seconds:g} s each or five calls", flush=True)
    for one, timing in report.measure(calls, seconds=seconds).items():
        times = {"ms": timing.median, "ms_low": timing.low, "ms_high": timing.high, "ms_p95": timing.p95}
        figures[one] |= {name: round(1e3 * value, 3) for name, value in times.items()} | {"calls": timing.calls}
    return figures, programs
