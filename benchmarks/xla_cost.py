"""What programs cost on the chips of a TPU slice, by XLA's compiler alone: memory, FLOPs, traffic, collectives."""

import importlib.util
import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import ShapeDtypeStruct as Array
from jax.experimental import topologies

from benchmarks import report
from benchmarks.tpu_program import estimated_cycles, hbm_traffic
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import sharding
from dpose_jax.training import loop, optimizer, state, step


class Chip(NamedTuple):
    """One Cloud TPU chip, with the figures of cloud.google.com/tpu/docs/KIND."""

    hbm_bytes: int
    hbm_bandwidth: float  # bytes a second
    flops: float  # peak a second in bfloat16, which float32 products use too by default
    host: tuple[int, ...]  # chips of one host
    shapes: tuple[str, ...]  # slices of up to 256 chips


_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBOIDS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
CHIPS = {"v5e": Chip(16 * 2**30, 819e9, 197e12, (2, 2), _PLANE)}
CHIPS["v5p"] = Chip(95 * 2**30, 2765e9, 459e12, (2, 2, 1), _CUBOIDS)
CHIPS["v6e"] = Chip(32 * 2**30, 1638e9, 918e12, (2, 2), _PLANE)
_COLLECTIVE = re.compile(r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-done)?\(")
_CHANNEL = re.compile(r"channel_id=\d+")
# Examples a device, or a part of `train.accumulate`, that are tried. From 128 they lie along a tile's 128 lanes.
BATCHES = (8, 16, 32, 48, 64, 96, *range(128, 4097, 128))


class DoesNotFitError(ValueError):
    """A program needs more memory than the chip has."""


class Program(NamedTuple):
    """What is compiled."""

    name: str
    jitted: Any
    arguments: tuple  # abstract ones
    batch: int  # examples a device in them


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the shape of a slice, such as v5e:4x4. Raises ValueError if there is no such slice."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].shapes:
        known = "; ".join(f"{kind}: {', '.join(chip.shapes)}" for kind, chip in CHIPS.items())
        raise ValueError(f"--topology={name!r}: must be KIND:SHAPE, one of {known}")
    return CHIPS[kind], tuple(int(side) for side in shape.split("x"))


def slice_mesh(name: str) -> jax.sharding.Mesh:
    """A mesh over a slice that is only described, to compile for. Raises ValueError without a libtpu that knows it."""
    chip, shape = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the TPU compiler is not installed: pip install -e '.[topology]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU VM to query
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is held, so two processes may compile at a time
    part = math.prod(shape) < math.prod(chip.host)  # of a host
    options = {"chips_per_host_bounds": (*shape, *[1] * (3 - len(shape)))} if part else {}
    try:
        described = topologies.get_topology_desc(name, platform="tpu", **options)
    except Exception as error:
        raise ValueError(f"--topology={name}: this libtpu cannot describe it: {error}") from error
    return sharding.make_mesh(list(described.devices))


def train_program(recipe: Recipe, mesh: jax.sharding.Mesh, batch: int) -> Program:
    """The train step as the loop compiles it, with `batch` examples a device."""
    kept = optimizer.kept_parts(recipe)
    model, update = build_model(recipe), optimizer.make_optimizer(recipe.optim, recipe.train, kept)
    train_step = step.make_train_step(recipe, model, build_schedule(recipe.diffusion), update, sharding.unshard(mesh))
    start = jax.eval_shape(lambda variables: state.initial_state(variables, update), abstract_variables(model))
    places = sharding.state_sharding(mesh, start, fsdp=recipe.train.fsdp)
    count, joints = batch * mesh.size, model.joint_set.num_joints
    rows = {"image": Array((count, *recipe.input_size, 3), np.uint8)}
    rows |= {"keypoints": Array((count, joints, 2), np.float32), "visible": Array((count, joints), np.float32)}
    rows |= {name: Array((count,), np.int32) for name in ("annotation_id", "bad_index")}
    arguments = start, rows, jax.eval_shape(jax.random.key, 0)
    return Program("train step", loop.jit_step(train_step, mesh, places), arguments, batch)


def sampler_program(recipe: Recipe, mesh: jax.sharding.Mesh, batch: int) -> Program:
    """Prediction as in the evaluation, flip test included, with one step: the compiler counts a loop's body once."""
    sampler = PoseSampler.of(recipe.override({"sampler.steps": (1,)}))
    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    jitted = jax.jit(sampler.joints, in_shardings=(everywhere, split, split), out_shardings=split)
    crops, ids = Array((batch * mesh.size, *recipe.input_size, 3), np.uint8), Array((batch * mesh.size,), np.int32)
    return Program("sampler, 1 step", jitted, (abstract_variables(sampler.model), crops, ids), batch)


def analyse(program: Program, chip: Chip, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The compiler's figures of a program for one device. Raises DoesNotFitError if its memory is too small."""
    try:
        compiled, seconds = report.compiled(program.jitted, *program.arguments)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = str(error).splitlines()[0]
        raise DoesNotFitError(f"{program.name} with {program.batch} examples a device: {text}") from error
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes  # those that do not reuse an argument
    text = compiled.as_text()
    flops, moved, sent = cost["flops"], hbm_traffic(text), collectives(text.splitlines())
    # What they take at the chip's limits. `binds` names the longer one; the step takes at least that.
    compute, traffic = 1e3 * (flops / chip.flops), 1e3 * (moved / chip.hbm_bandwidth)
    found = {"program": program.name, "devices": mesh.size, "batch_per_device": program.batch}
    found |= {"hbm_bytes_per_device": arguments + temporaries + outputs, "hbm_limit_bytes": chip.hbm_bytes}
    found |= {"hbm_arguments_bytes": arguments, "hbm_temporaries_bytes": temporaries, "hbm_outputs_bytes": outputs}
    found |= {"flops_per_device": flops, "bytes_accessed_per_device": cost["bytes accessed"]}
    found |= {"hbm_traffic_per_device": moved, "hbm_traffic_per_image": moved / program.batch}
    found |= {"compute_ms": compute, "memory_ms": traffic, "estimated_cycles": estimated_cycles(text)}
    found |= {"binds": "compute" if compute > traffic else "memory", "collectives": sent}
    return found | {"collective_bytes": sum(one["bytes"] for one in sent.values()), "compile_seconds": seconds}


def collectives(lines: list[str]) -> dict[str, dict[str, int]]:
    """Count and bytes of results, on one device, of each kind of collective in a compiled program's text."""
    # An asynchronous one counts where it ends. One in a loop counts once, and so does one in pieces that many fusions
    # share to hide it behind their work: its pieces have one channel.
    found: dict[str, dict[str, int]] = {}
    seen = set()
    for match in filter(None, map(_COLLECTIVE.search, lines)):
        if channel := _CHANNEL.search(match.string):
            if channel[0] in seen:
                continue
            seen.add(channel[0])
        entry = found.setdefault(match[2], {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += shape_bytes(match[1])
    return found


def shape_bytes(text: str) -> int:
    """Bytes of a shape in a compiled program's text, such as `(f32[4,2]{1,0}, bf16[8], pred[])`, without padding."""
    shapes = re.findall(r"\b[a-z]+(\d*)\[([\d,]*)\]", text)
    return sum(int(bits or 8) * math.prod(map(int, filter(None, sizes.split(",")))) // 8 for bits, sizes in shapes)


def largest_batch(train: Callable[[int], dict], parts: int) -> dict:
    """What `train`, examples a device -> `analyse`, returns for the largest batch that fits; or DoesNotFitError."""
    best: dict = {}
    for examples in (parts * batch for batch in BATCHES):
        try:
            best = train(examples)
        except DoesNotFitError:
            if not best:
                raise
            print(f"{examples} examples a device do not fit", flush=True)
            break
        print(f"{examples} examples a device take {best['hbm_bytes_per_device']:,} bytes", flush=True)
    return best
