"""Inference and train step on one device, beside PyTorch: images a second, memory, shares of the limits, kernels."""

import functools
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import peers, report
from benchmarks.tpu_program import hbm_traffic
from benchmarks.xla_cost import CHIPS, train_program
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.initialise import initial_variables
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import sharding
from dpose_jax.training import optimizer, state


class Peak(NamedTuple):
    """What a device can do at most, by its maker's data sheet, without sparsity."""

    bandwidth: float  # bytes a second
    bfloat16: float  # floating-point operations a second
    float32: float  # of products of float32 as JAX takes them by default: TF32 on GPUs, bfloat16 on TPUs


# By a part of JAX's device_kind.
PEAKS = {"H200": Peak(4.8e12, 989e12, 494e12), "H100": Peak(3.35e12, 989e12, 494e12)}
PEAKS |= {"A100-SXM4-80GB": Peak(2.04e12, 312e12, 156e12), "A100-SXM4-40GB": Peak(1.56e12, 312e12, 156e12)}
_TPUS = {"TPU v5 lite": "v5e", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}
PEAKS |= {kind: Peak(CHIPS[name].hbm_bandwidth, CHIPS[name].flops, CHIPS[name].flops) for kind, name in _TPUS.items()}

# What is timed: the overrides of the recipe, and whether it is the train step. Inference is without flip test.
WORKS: dict[str, tuple[dict, bool]] = {"inference, coarse": ({"loss.diffusion": 0.0}, False)}
WORKS |= {f"inference, K = {k}": ({"sampler.steps": (k,)}, False) for k in (1, 2)}
WORKS |= {"training, coarse": ({"loss.diffusion": 0.0}, True), "training": ({}, True)}
PLAIN = tuple(work for work in WORKS if "coarse" in work)  # whose network PyTorch has too
KERNELS = 5  # that --kernels names
TRACED = 3  # calls in a profile


def chosen(places: list[str] | None) -> list[str]:
    """The names of WORKS at these places; all for None. Raises ValueError for a place that there is not."""
    known = list(WORKS)
    for place in places or ():
        if not place.isdecimal() or int(place) >= len(known):
            raise ValueError(f"--work={place!r}: must be among 0 to {len(known) - 1}: {'; '.join(known)}")
    return [known[int(place)] for place in places] if places else known


def peak() -> Peak | None:
    """The first device's limits, None if they are not in PEAKS."""
    return next((limits for part, limits in PEAKS.items() if part in jax.devices()[0].device_kind), None)


def memory_traffic(program: Any) -> float:
    """Bytes that one run of a compiled program moves through the first device's memory, by the compiler."""
    if jax.devices()[0].platform == "tpu":
        return hbm_traffic(program.as_text())
    return program.cost_analysis()["bytes accessed"]


def measure(
    recipe: Recipe, work: str, batch: int, *, with_torch: bool, seconds: float, kernels: bool
) -> list[dict[str, Any]]:
    """A row for us and, of a plain network, one for PyTorch, timed in turn; each says if it does not fit.

    `seconds` go to each program; `kernels` names our KERNELS costliest ones.
    """
    rows: dict[str, dict] = {"ours": {}}
    calls: dict[str, Callable] = {}
    try:
        calls["ours"], program, flops = ours(recipe, work, batch)
        memory, moved = program.memory_analysis(), memory_traffic(program)
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        rows["ours"] = {"memory_mib": (used - memory.alias_size_in_bytes) / 2**20}
        jax.block_until_ready(calls["ours"]())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return [{"who": "ours", "note": "does not fit"}]
    if with_torch and work in PLAIN:
        train, size, joints = WORKS[work][1], (batch, *recipe.input_size, 3), recipe.joints.num_joints
        width = int(recipe.model.backbone.removeprefix("w"))
        calls["torch"], rows["torch"] = peers.torch_compiled(width, joints, size, recipe.model.dtype, train)
    times = report.measure({who: call for who, call in calls.items() if call}, seconds=seconds)
    for who, t in times.items():
        rows[who] |= {"ms": 1e3 * t.median, "images_per_s": batch / t.median}
        rows[who] |= {"low": batch / t.high, "high": batch / t.low}
        if (limits := peak()) and (who == "torch" or not work.endswith("K = 2")):  # XLA counts a loop's body once
            rows[who]["matrix_share"] = flops / t.median / getattr(limits, recipe.model.dtype)
    if peak() and not work.endswith("K = 2"):
        rows["ours"]["bandwidth_share"] = moved / times["ours"].median / peak().bandwidth
    if kernels:
        rows["ours"]["kernels"] = "; ".join(f"{name} {share:.0%}" for name, share in costliest(calls["ours"]))
    return [{"who": who} | row for who, row in rows.items()]


def ours(recipe: Recipe, work: str, batch: int) -> tuple[Callable, Any, float]:
    """A call of the program on one device, the compiled program, and its FLOPs as it was written."""
    overrides, train = WORKS[work]
    recipe = recipe.override(overrides | {"train.accumulate": 1, "eval.flip": False})
    rng, joints = np.random.default_rng(0), recipe.joints.num_joints
    crops = rng.integers(256, size=(batch, *recipe.input_size, 3), dtype=np.uint8)
    ids = np.arange(batch, dtype=np.int32)
    variables = initial_variables(build_model(recipe), 0)
    if not train:
        given = jax.device_put((variables, crops, ids))
        lowered = jax.jit(PoseSampler.of(recipe).heatmaps).lower(*given)
        program = lowered.compile()
        return functools.partial(program, *given), program, lowered.cost_analysis()["flops"]
    mesh = sharding.make_mesh(jax.devices()[:1])
    start = state.initial_state(
        variables, optimizer.make_optimizer(recipe.optim, recipe.train, optimizer.kept_parts(recipe))
    )
    keypoints = rng.uniform(0, min(recipe.input_size), (batch, joints, 2)).astype(np.float32)
    rows = {"image": crops, "keypoints": keypoints, "visible": np.ones((batch, joints), np.float32)}
    rows |= {"annotation_id": ids, "bad_index": ids}
    lowered = train_program(recipe, mesh, batch).jitted.lower(start, rows, jax.random.key(0))
    program, given = lowered.compile(), jax.device_put(rows, sharding.batch_sharding(mesh))
    held = [jax.device_put(start, sharding.replicated(mesh))]  # the step donates it

    def step():
        held[0], metrics = program(held[0], given, jax.random.key(0))
        return metrics["loss"]

    return step, program, lowered.cost_analysis()["flops"]


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
