"""What the compiler says of the train step and the sampler: memory, FLOPs, memory traffic, collectives."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import report
from benchmarks.chips import Chip
from dpose_jax.diffusion.sampler import sampler_settings
from dpose_jax.models import pose_sampler
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.runtime import sharding
from dpose_jax.training.loop import jit_step
from dpose_jax.training.state import initial_state, make_optimizer
from dpose_jax.training.step import make_train_step

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
UNIT, LANES = 8, 128  # `largest_batch` looks at multiples of 8 up to 128, and of 128, a tile's lanes, above
TYPE_BITS = {"pred": 8, "bf16": 16}  # of other element types the name ends with the number, as in s32


class DoesNotFitError(ValueError):
    """A program needs more memory than the chip has."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: a jitted function, its abstract arguments, and the examples a device in them."""

    name: str
    jitted: Any
    arguments: tuple
    batch: int


def train_program(config, mesh: jax.sharding.Mesh, batch: int) -> Program:
    """The train step as the loop compiles it, with `batch` examples a device."""
    model, optimizer = build_model(config), make_optimizer(config)
    step = make_train_step(config, model, build_schedule(config.diffusion), optimizer, sharding.gather(mesh))
    state = jax.eval_shape(lambda variables: initial_state(variables, optimizer), abstract_variables(model))
    places = sharding.state_sharding(mesh, state, fsdp=config.train.fsdp)
    count, joints = batch * mesh.size, model.joint_set.num_joints
    shapes = {
        "image": ((count, *config.input_size, 3), np.uint8),
        "keypoints": ((count, joints, 2), np.float32),
        "visible": ((count, joints), np.float32),
        "annotation_id": ((count,), np.int32),
        "bad_index": ((count,), np.int32),
    }
    rows = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
    key = jax.eval_shape(jax.random.key, 0)
    return Program("train step", jit_step(step, mesh, places), (state, rows, key), batch)


def sampler_program(config, mesh: jax.sharding.Mesh, batch: int) -> Program:
    """Prediction as evaluation runs it, flip test included, with `batch` examples a device and one denoising step.

    One, since the compiler counts the body of a longer loop once, whatever its length.
    """
    model = build_model(config)
    once = (dataclasses.replace(sampler_settings(config)[0], steps=1),)
    predict = pose_sampler.make_predict(model, build_schedule(config.diffusion), once, flip=config.eval.flip, seed=0)
    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    jitted = jax.jit(predict, in_shardings=(everywhere, split, split), out_shardings=split)
    images = jax.ShapeDtypeStruct((batch * mesh.size, *config.input_size, 3), np.uint8)
    ids = jax.ShapeDtypeStruct((batch * mesh.size,), np.int32)
    return Program("sampler, 1 step", jitted, (abstract_variables(model), images, ids), batch)


def analyse(program: Program, chip: Chip, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Compiles a program and reads what the compiler says of it, for one device.

    Returns:
      `program`, `devices`, `batch_per_device`; bytes of memory: `hbm_bytes_per_device`, of which
      `hbm_arguments_bytes`, `hbm_temporaries_bytes`, `hbm_outputs_bytes` (those that do not reuse an argument), and
      the chip's `hbm_limit_bytes`; `flops_per_device`, and `bytes_accessed_per_device` and
      `bytes_accessed_per_image` of memory traffic; the milliseconds that these take at the chip's limits,
      `compute_ms` and `memory_ms`, and which `binds`; `collectives`: {kind: {"count", "bytes"}}, and the sum
      `collective_bytes`; `compile_seconds`.

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
    """Counts the collectives in a compiled program's text, and the bytes of their results on one device.

    An asynchronous one is counted where it ends. One inside of a loop is counted once.
    """
    pattern = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(?:-done)?\(")
    found: dict[str, dict[str, int]] = {}
    for line in lines:
        match = pattern.search(line)
        if match:
            entry = found.setdefault(match[2], {"count": 0, "bytes": 0})
            entry["count"] += 1
            entry["bytes"] += shape_bytes(match[1])
    return found


def shape_bytes(text: str) -> int:
    """Bytes of a shape of a compiled program's text, such as `(f32[4,2]{1,0}, bf16[8])`; padding is not counted."""
    total = 0
    for kind, sizes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text):
        bits = TYPE_BITS.get(kind) or int(re.sub(r"\D", "", kind) or 0)
        total += bits * math.prod(int(size) for size in sizes.split(",") if size) // 8
    return total


def candidate(index: int) -> int:
    """The index-th batch that `largest_batch` may try, from 1: 8, 16, ..., 128, 256, 384, ...

    From 128 on the compiler lays the examples along the lanes of its tiles, so only whole tiles are of interest.
    """
    whole = LANES // UNIT
    return UNIT * index if index <= whole else LANES * (index - whole + 1)


def largest_batch(train: Callable[[int], dict], hbm_bytes: int, parts: int) -> dict:
    """The analysis of the train step with the most examples that fit, of those that `candidate` names for each part.

    A compilation takes minutes, so each is reported when it ends. It starts at 128, then goes where the line through
    the last two that fitted reaches the chip's memory, and halves what is left after one that did not fit.

    Args:
      train: examples a device -> `analyse` of the step.
      hbm_bytes: of the chip.
      parts: in which a device takes its examples, one after the other (`train.accumulate`).

    Raises:
      DoesNotFitError: if not even the first candidate fits.
    """
    low, high, index = 0, None, LANES // UNIT
    best, fitted = None, []
    while best is None or high is None or high - low > 1:
        examples = parts * candidate(index)
        try:
            best, low = train(examples), index
            fitted.append((candidate(index), best["hbm_bytes_per_device"]))
            print(f"{examples} examples a device take {fitted[-1][1]:,} bytes", flush=True)
            index = _beyond(low, fitted, hbm_bytes)
        except DoesNotFitError:
            print(f"{examples} examples a device do not fit", flush=True)
            if index == 1:
                raise
            high, index = index, (low + index) // 2
        if high is not None and index >= high:
            index = (low + high) // 2
    return best


def _beyond(index: int, fitted: Sequence[tuple[int, int]], hbm_bytes: int) -> int:
    """The last candidate up to the batch that would fill the memory, by the line through the last two that fitted."""
    index += 1
    if len(fitted) < 2:
        return index
    (before, less), (batch, used) = fitted[-2:]
    limit = batch + (hbm_bytes - used) * (batch - before) / max(used - less, 1)
    while candidate(index + 1) <= min(limit, 4 * batch):
        index += 1
    return index
