"""Inference and train step on one device, beside PyTorch: images a second, memory, shares of the limits, kernels."""

import functools
import gc
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import peers, report
from benchmarks.tpu_program import hbm_traffic
from benchmarks.xla_cost import CHIPS, train_program
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.initialise import abstract_variables, initial_variables
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import sharding
from dpose_jax.training import optimizer, state


class Peak(NamedTuple):
    """What a device can do at most, by its maker's data sheet, without sparsity."""

    bandwidth: float  # bytes a second
    bfloat16: float  # floating-point operations a second
    float32: float  # of products of float32 as JAX takes them by default: TF32 on GPUs, bfloat16 on TPUs


# By JAX's whole device_kind: an H200 NVL, a GH200, an H100 of PCIe and a MIG slice have other limits.
PEAKS = {"NVIDIA H200": Peak(4.8e12, 989e12, 494e12), "NVIDIA H100 80GB HBM3": Peak(3.35e12, 989e12, 494e12)}
PEAKS |= {"NVIDIA A100-SXM4-80GB": Peak(2.04e12, 312e12, 156e12)}
PEAKS |= {"NVIDIA A100-SXM4-40GB": Peak(1.56e12, 312e12, 156e12)}
_TPUS = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}
PEAKS |= {kind: Peak(CHIPS[name].hbm_bandwidth, CHIPS[name].flops, CHIPS[name].flops) for kind, name in _TPUS.items()}

# What is timed: the overrides of the recipe, and whether it is the train step. Inference is without flip test.
WORKS: dict[str, tuple[dict, bool]] = {"inference, coarse": ({"loss.diffusion": 0.0}, False)}
WORKS |= {f"inference, K = {k}": ({"sampler.steps": (k,)}, False) for k in (1, 2)}
WORKS |= {"training, coarse": ({"loss.diffusion": 0.0}, True), "training": ({}, True)}
PLAIN = tuple(work for work in WORKS if "coarse" in work)  # whose network PyTorch has too
KERNELS = 5  # that --kernels names
TRACED = 3  # calls in a profile
COUNTED = 8  # images of the program whose FLOPs are counted
FULL = "does not fit"  # the note of a row


def chosen(places: list[str] | None) -> list[str]:
    """The names of WORKS at these places; all for None. Raises ValueError for a place that there is not."""
    known = list(WORKS)
    for place in places or ():
        if not place.isdecimal() or int(place) >= len(known):
            raise ValueError(f"--work={place!r}: must be among 0 to {len(known) - 1}: {'; '.join(known)}")
    return [known[int(place)] for place in places] if places else known


def peak() -> Peak | None:
    """The first device's limits, None if they are not in PEAKS."""
    return PEAKS.get(jax.devices()[0].device_kind)


def memory_traffic(program: Any) -> float:
    """Bytes that one run of a compiled program moves through the first device's memory, by the compiler."""
    if jax.devices()[0].platform == "cpu":
        return program.cost_analysis()["bytes accessed"]
    return hbm_traffic(program.as_text())


def failure(error: Exception) -> str:
    """What a row notes of a program that failed: FULL for want of the device's memory, or its error in one line."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return FULL
    return f"{type(error).__name__}: {' '.join(text.split())}"[:200]


def tried(function: Callable, *arguments: Any) -> Any:
    """The function's result; None if it fails, which is printed: a figure beside the times must not cost them."""
    try:
        return function(*arguments)
    except Exception as error:
        print(f"{function.__name__}: {failure(error)}", flush=True)
        return None


def measure(
    recipe: Recipe, work: str, batch: int, who: Sequence[str], *, flops: float | None, seconds: float, kernels: bool
) -> dict[str, dict[str, Any]]:
    """A row for each of `who`, "ours" and "torch", timed in turn. That of a program that fails has a note alone.

    Where ours does not fit it holds what memory there is, so "torch" after it has no row. `flops` is `flops_an_image`;
    `seconds` go to each program; `kernels` names our KERNELS costliest ones.
    """
    rows: dict[str, dict] = {}
    calls: dict[str, Callable] = {}
    gc.collect()
    if "torch" in sys.modules:
        peers.release_torch()  # what a smaller batch took
    for name in who:
        if name == "torch" and rows.get("ours", {}).get("note") == FULL:
            continue
        try:
            calls[name], rows[name] = (ours if name == "ours" else theirs)(recipe, work, batch)
        except Exception as error:  # compilers and drivers raise of many kinds; the other rows are worth having
            rows[name] = {"note": failure(error)}
    try:
        times = report.measure(calls, seconds=seconds) if calls else {}
    except Exception as error:  # each ran alone before
        return rows | {name: {"note": f"timed in turn: {failure(error)}"} for name in calls}
    loop = work.endswith("K = 2")  # XLA counts a loop's body once
    for name, t in times.items():
        rows[name] |= {"ms": 1e3 * t.median, "images_per_s": batch / t.median}
        rows[name] |= {"low": batch / t.high, "high": batch / t.low}
        moved = rows[name].pop("moved", None)
        if (limits := peak()) and not loop:
            rates = ("matrix_share", flops and flops * batch, getattr(limits, recipe.model.dtype))
            for share, amount, limit in (rates, ("bandwidth_share", moved, limits.bandwidth)):
                rows[name] |= {share: amount / t.median / limit} if amount else {}
    if kernels and "ours" in times and (found := tried(costliest, calls["ours"])):
        rows["ours"]["kernels"] = "; ".join(f"{name} {share:.0%}" for name, share in found)
    return rows


def ours(recipe: Recipe, work: str, batch: int) -> tuple[Callable, dict[str, float]]:
    """A call of the program on the first device, which has run once, and what it takes: memory, and bytes `moved`."""
    call, program = compiled(recipe, work, batch)
    jax.block_until_ready(call())
    return call, {"memory_mib": tried(memory_mib, program), "moved": tried(memory_traffic, program)}


def memory_mib(program: Any) -> float:
    """Memory of one run of a compiled program, by the compiler."""
    memory = program.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return (used - memory.alias_size_in_bytes) / 2**20


def theirs(recipe: Recipe, work: str, batch: int) -> tuple[Callable, dict[str, float]]:
    """`peers.torch_compiled` of a plain work."""
    size, width = (batch, *recipe.input_size, 3), int(recipe.model.backbone.removeprefix("w"))
    return peers.torch_compiled(width, recipe.joints.num_joints, size, recipe.model.dtype, WORKS[work][1])


def _as_timed(recipe: Recipe, work: str) -> Recipe:
    return recipe.override(WORKS[work][0] | {"train.accumulate": 1, "eval.flip": False})


def compiled(recipe: Recipe, work: str, batch: int) -> tuple[Callable, Any]:
    """A call of the program on the first device, and the compiled program."""
    recipe = _as_timed(recipe, work)
    rng, joints = np.random.default_rng(0), recipe.joints.num_joints
    crops = rng.integers(256, size=(batch, *recipe.input_size, 3), dtype=np.uint8)
    ids = np.arange(batch, dtype=np.int32)
    variables = initial_variables(build_model(recipe), 0)
    if not WORKS[work][1]:
        given = jax.device_put((variables, crops, ids))
        program = jax.jit(PoseSampler.of(recipe).heatmaps).lower(*given).compile()
        return functools.partial(program, *given), program
    mesh = sharding.make_mesh(jax.devices()[:1])
    start = state.initial_state(
        variables, optimizer.make_optimizer(recipe.optim, recipe.train, optimizer.kept_parts(recipe))
    )
    keypoints = rng.uniform(0, min(recipe.input_size), (batch, joints, 2)).astype(np.float32)
    rows = {"image": crops, "keypoints": keypoints, "visible": np.ones((batch, joints), np.float32)}
    rows |= {"annotation_id": ids, "bad_index": ids}
    program = train_program(recipe, mesh, batch).jitted.lower(start, rows, jax.random.key(0)).compile()
    given = jax.device_put(rows, sharding.batch_sharding(mesh))
    held = [jax.device_put(start, sharding.replicated(mesh))]  # the step donates it

    def step():
        held[0], metrics = program(held[0], given, jax.random.key(0))
        return metrics["loss"]

    return step, program


def flops_an_image(recipe: Recipe, work: str) -> float:
    """FLOPs an image as the program is written for the first device's platform, counted with COUNTED images.

    XLA counts them of a program for its own CPU alone, and not of one for a plugin's device, as GPUs and TPUs are. So
    the program is lowered in that platform's form, over the CPU; nothing is compiled. An update of the parameters has
    under 1% of a step's.
    """
    recipe, platform = _as_timed(recipe, work), jax.devices()[0].platform
    mesh = sharding.make_mesh(jax.devices("cpu")[:1])
    if WORKS[work][1]:
        _, jitted, arguments, _ = train_program(recipe, mesh, COUNTED)
    else:
        sampler = PoseSampler.of(recipe)
        jitted = jax.jit(sampler.heatmaps, in_shardings=sharding.replicated(mesh))
        crops = jax.ShapeDtypeStruct((COUNTED, *recipe.input_size, 3), np.uint8)
        arguments = abstract_variables(sampler.model), crops, jax.ShapeDtypeStruct((COUNTED,), np.int32)
    lowered = jitted.trace(*arguments).lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))
    return lowered.cost_analysis()["flops"] / COUNTED


def costliest(call: Callable) -> list[tuple[str, float]]:
    """The KERNELS names that take the most time of some calls, and their shares of all kernels' time."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(TRACED):
                jax.block_until_ready(call())
        (file,) = (
            os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(".xplane.pb")
        )
        return shares(jax.profiler.ProfileData.from_file(file).planes)


def shares(planes: Iterable) -> list[tuple[str, float]]:
    """As `costliest`, of a profile's planes: streams of GPUs, operations of TPUs, threads of XLA on CPUs."""
    taken: Counter = Counter()
    for plane in planes:
        for line in plane.lines:
            device = plane.name.startswith("/device:") and line.name.startswith(("Stream", "XLA Ops"))
            if (
                device
                or plane.name == "/host:CPU"
                and line.name.startswith("tf_XLA")
                and jax.default_backend() == "cpu"
            ):
                for event in line.events:
                    taken[event.name] += event.duration_ns
    total = sum(taken.values())
    return [(name, time / total) for name, time in taken.most_common(KERNELS)]
