"""Costs of the train step and the sampler from XLA's compiler: memory, FLOPs, memory traffic, collectives."""

import bisect
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import report
from benchmarks.chips import Chip
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import sharding
from dpose_jax.training.loop import jit_step
from dpose_jax.training.state import initial_state, make_optimizer
from dpose_jax.training.step import make_train_step

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Examples a device that `largest_batch` considers. From 128 the compiler lays them along a tile's 128 lanes, so only
# whole tiles are of interest.
BATCHES = (*range(8, 128, 8), *range(128, 4097, 128))


class DoesNotFitError(ValueError):
    """A program needs more memory than the chip has."""


class Program(NamedTuple):
    """What is compiled: a jitted function, its abstract arguments, and the examples a device in them."""

    name: str
    jitted: Any
    arguments: tuple
    batch: int


def train_program(recipe: Recipe, mesh: jax.sharding.Mesh, batch: int) -> Program:
    """The train step as the loop compiles it, with `batch` examples a device."""
    model, optimizer = build_model(recipe), make_optimizer(recipe.optim, recipe.train)
    step = make_train_step(recipe, model, build_schedule(recipe.diffusion), optimizer, sharding.gather(mesh))
    state = jax.eval_shape(lambda variables: initial_state(variables, optimizer), abstract_variables(model))
    places = sharding.state_sharding(mesh, state, fsdp=recipe.train.fsdp)
    count, joints = batch * mesh.size, model.joint_set.num_joints
    rows = {
        "image": jax.ShapeDtypeStruct((count, *recipe.input_size, 3), np.uint8),
        "keypoints": jax.ShapeDtypeStruct((count, joints, 2), np.float32),
        "visible": jax.ShapeDtypeStruct((count, joints), np.float32),
        "annotation_id": jax.ShapeDtypeStruct((count,), np.int32),
        "bad_index": jax.ShapeDtypeStruct((count,), np.int32),
    }
    key = jax.eval_shape(jax.random.key, 0)
    return Program("train step", jit_step(step, mesh, places), (state, rows, key), batch)


def sampler_program(recipe: Recipe, mesh: jax.sharding.Mesh, batch: int) -> Program:
    """Prediction as in the evaluation, with its flip test, for `batch` examples a device and one denoising step.

    One step, because the compiler counts the body of a loop once, whatever its length.
    """
    sampler = PoseSampler.of(recipe.override({"sampler.steps": (1,)}))
    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    jitted = jax.jit(sampler.joints, in_shardings=(everywhere, split, split), out_shardings=split)
    images = jax.ShapeDtypeStruct((batch * mesh.size, *recipe.input_size, 3), np.uint8)
    ids = jax.ShapeDtypeStruct((batch * mesh.size,), np.int32)
    return Program("sampler, 1 step", jitted, (abstract_variables(sampler.model), images, ids), batch)


def analyse(program: Program, chip: Chip, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Compiles a program and returns the compiler's figures for one device.

    Returns:
      bytes of memory: `hbm_bytes_per_device`, the sum of arguments, temporaries and those outputs that reuse no
      argument; `flops_per_device`, and `bytes_accessed_per_device` of memory traffic; the milliseconds that these take
      at the chip's limits, and which of them `binds`; `collectives`, see `collectives`.

    Raises:
      DoesNotFitError: if the program needs more memory than the chip has.
    """
    try:
        compiled, seconds = report.compiled(program.jitted, *program.arguments)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = str(error).splitlines()[0]
        raise DoesNotFitError(f"{program.name} with {program.batch} examples a device: {text}") from error
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    compute, traffic = cost["flops"] / chip.flops, cost["bytes accessed"] / chip.hbm_bandwidth
    moved = collectives(compiled.as_text().splitlines())
    return {
        "program": program.name,
        "devices": mesh.size,
        "batch_per_device": program.batch,
        "hbm_bytes_per_device": memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs,
        "hbm_limit_bytes": chip.hbm_bytes,
        "hbm_arguments_bytes": memory.argument_size_in_bytes,
        "hbm_temporaries_bytes": memory.temp_size_in_bytes,
        "hbm_outputs_bytes": outputs,
        "flops_per_device": cost["flops"],
        "bytes_accessed_per_device": cost["bytes accessed"],
        "bytes_accessed_per_image": cost["bytes accessed"] / program.batch,
        "compute_ms": 1e3 * compute,
        "memory_ms": 1e3 * traffic,
        "binds": "compute" if compute > traffic else "memory",
        "collectives": moved,
        "collective_bytes": sum(one["bytes"] for one in moved.values()),
        "compile_seconds": seconds,
    }


def collectives(lines: Iterable[str]) -> dict[str, dict[str, int]]:
    """Number of collectives in a compiled program's text, and bytes of their results on one device: {"count", "bytes"}.

    An asynchronous one counts where it ends. One in a loop counts once.
    """
    pattern = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(?:-done)?\(")
    found: dict[str, dict[str, int]] = {}
    for match in filter(None, map(pattern.search, lines)):
        entry = found.setdefault(match[2], {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += shape_bytes(match[1])
    return found


def shape_bytes(text: str) -> int:
    """Bytes of a shape in a compiled program's text, such as `(f32[4,2]{1,0}, bf16[8], pred[])`, without padding."""
    shapes = re.findall(r"\b[a-z]+(\d*)\[([\d,]*)\]", text)
    return sum(int(bits or 8) * math.prod(map(int, filter(None, sizes.split(",")))) // 8 for bits, sizes in shapes)


def largest_batch(train: Callable[[int], dict], parts: int) -> dict:
    """The analysis of the train step with the largest batch of BATCHES that fits, by binary search.

    A compilation takes minutes, so each is reported when it ends.

    Args:
      train: examples a device -> `analyse` of the step.
      parts: in which a device takes its examples, one after the other (`train.accumulate`).

    Raises:
      DoesNotFitError: if not even the smallest fits.
    """
    fitting: dict[int, dict] = {}

    def too_large(batch):
        try:
            fitting[batch] = train(parts * batch)
        except DoesNotFitError:
            print(f"{parts * batch} examples a device do not fit", flush=True)
            if batch == BATCHES[0]:
                raise
            return True
        print(f"{parts * batch} examples a device take {fitting[batch]['hbm_bytes_per_device']:,} bytes", flush=True)
        return False

    bisect.bisect_left(BATCHES, True, key=too_large)
    return fitting[max(fitting)]
