"""Compile the train step and the sampler for a TPU slice, on any machine: memory, FLOPs, bytes, collectives.

python benchmark.py topology --config=configs/coco_w32_256x192.py --topology=v5e:4x4 --out=F.json [--batch=32 | auto]

Needs `pip install -e ".[topology]"`, and no TPU. The figures are the compiler's: nothing is run.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import libtpu  # noqa: F401  # the compiler: without it the subcommand says so by name
import numpy as np
from absl import flags
from jax.experimental import topologies
from ml_collections import config_flags

from dpose_jax import inference, parallel
from dpose_jax.benchmarks import report
from dpose_jax.benchmarks.chips import Chip, parse_topology
from dpose_jax.diffusion.sampler import sampler_settings
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.training.fields import check_fields
from dpose_jax.training.loop import jit_step
from dpose_jax.training.state import initial_state, make_optimizer
from dpose_jax.training.step import make_train_step

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "KIND:SHAPE, such as v5e:4x4.", required=True)
BATCH = flags.DEFINE_string("batch", None, "Examples a device, or auto: the most that fit; the config's by default.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", required=True)
flags.mark_flag_as_required("config")

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
AUTO_UNIT = 8  # --batch=auto looks at multiples of this many examples a device
ELEMENT_BITS = {"pred": 8, "bf16": 16, "f16": 16}  # and else the digits of the name, as in s32


class DoesNotFitError(Exception):
    """The compiler has no room for the program in the chip's memory."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: the jitted function and its abstract arguments."""

    name: str
    jitted: Any
    arguments: tuple


def main() -> None:
    """Compiles, prints the table and writes the report."""
    jax.config.update("jax_platforms", "cpu")
    environment = report.environment() | {"versions": report.versions("jax", "jaxlib", "libtpu", "flax")}
    config, (chip, shape) = CONFIG.value, parse_topology(TOPOLOGY.value)
    check_fields(config)
    mesh = slice_mesh(chip, shape)
    batch = batch_per_device(config, mesh, BATCH.value)
    train = lambda size: analyse(train_program(config, mesh, size), chip, mesh, size)  # noqa: E731
    if batch is None:
        batch, step = largest_batch(train, chip)
    else:
        step = train(batch)
    rows = [step, analyse(sampler_program(config, mesh, batch), chip, mesh, batch)]
    protocol = {
        "topology": TOPOLOGY.value,
        "backbone": config.model.backbone,
        "input_size": list(config.input_size),
        "dtype": config.model.dtype,
        "fsdp": config.train.fsdp,
        "accumulate": config.train.accumulate,
        "chip": dataclasses.asdict(chip),
    }
    table = [{key: value for key, value in row.items() if key != "collectives"} for row in rows]
    report.write(OUT.value, table, environment=environment, protocol=protocol, **step, sampler=rows[1])


def slice_mesh(chip: Chip, shape: tuple[int, ...]) -> jax.sharding.Mesh:
    """A mesh over the chips of a slice that is only described.

    Raises:
      ValueError: if this libtpu cannot compile for it.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU VM to ask
    sizes = {}
    if math.prod(shape) < math.prod(chip.host):
        sizes = {"chips_per_host_bounds": (*shape, *[1] * (3 - len(shape)))}
    name = f"{chip.kind}:{'x'.join(map(str, shape))}"
    try:
        described = topologies.get_topology_desc(name, platform="tpu", **sizes)
    except Exception as error:
        raise ValueError(f"--topology={name}: this libtpu cannot describe it: {error}") from error
    return parallel.make_mesh(list(described.devices))


def batch_per_device(config, mesh: jax.sharding.Mesh, given: str | None) -> int | None:
    """Examples a device; None for `auto`.

    Raises:
      ValueError: if `given` is not a positive number or `auto`, or the devices do not divide the config's batch.
    """
    if given == "auto":
        return None
    if given is None:
        parallel.check_batch_size("train.batch_size", config.train.batch_size, mesh, config.train.accumulate)
        return config.train.batch_size // mesh.size
    if not given.isdecimal() or int(given) < 1 or int(given) % config.train.accumulate:
        raise ValueError(f"--batch={given}: must be auto, or a positive multiple of train.accumulate")
    return int(given)


def train_program(config, mesh: jax.sharding.Mesh, batch: int) -> Program:
    """The train step of the loop, with `batch` examples a device."""
    model, optimizer = build_model(config), make_optimizer(config)
    step = make_train_step(config, model, build_schedule(config), optimizer, parallel.gather(mesh))
    state = jax.eval_shape(lambda variables: initial_state(variables, optimizer), abstract_variables(model))
    places = parallel.state_sharding(mesh, state, fsdp=config.train.fsdp)
    count, joints = batch * mesh.size, model.joint_set.num_joints
    shapes = {
        "image": ((count, *config.input_size, 3), np.uint8),
        "keypoints": ((count, joints, 2), np.float32),
        "visible": ((count, joints), np.float32),
        "annotation_id": ((count,), np.int32),
        "bad_index": ((count,), np.int32),
    }
    rows = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
    return Program("train step", jit_step(step, mesh, places), (state, rows))


def sampler_program(config, mesh: jax.sharding.Mesh, batch: int) -> Program:
    """Prediction as evaluation runs it, flip test included, with one denoising step.

    One, since the compiler counts the body of a longer loop once, whatever its length.
    """
    model = build_model(config)
    once = (dataclasses.replace(sampler_settings(config)[0], steps=1),)
    predict = inference.make_predict(model, build_schedule(config), once, flip=config.eval.flip, seed=0)
    everywhere, split = parallel.replicated(mesh), parallel.batch_sharding(mesh)
    jitted = jax.jit(predict, in_shardings=(everywhere, split, split), out_shardings=split)
    images = jax.ShapeDtypeStruct((batch * mesh.size, *config.input_size, 3), np.uint8)
    ids = jax.ShapeDtypeStruct((batch * mesh.size,), np.int32)
    return Program("sampler, 1 step", jitted, (abstract_variables(model), images, ids))


def analyse(program: Program, chip: Chip, mesh: jax.sharding.Mesh, batch: int) -> dict[str, Any]:
    """Compiles a program and reads what the compiler says of it, for one device.

    Returns:
      `program`, `devices`, `batch_per_device`; bytes of memory: `hbm_bytes_per_device`, of which
      `hbm_arguments_bytes`, `hbm_temporaries_bytes`, `hbm_outputs_bytes` (those that do not reuse an argument), and
      the chip's `hbm_limit_bytes`; `flops_per_device`, `bytes_accessed_per_device` and `bytes_accessed_per_image` of
      memory traffic; the milliseconds that these take at the chip's limits, `compute_ms` and `memory_ms`, and which
      `binds`; `collectives`: {kind: {"count", "bytes"}}, and their sum `collective_bytes`; `compile_seconds`.

    Raises:
      DoesNotFitError: if the program needs more memory than the chip has.
    """
    try:
        compiled, seconds = report.compiled(program.jitted, *program.arguments)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(f"{program.name}, {batch} examples a device: {str(error).splitlines()[0]}") from error
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    compute, traffic = cost["flops"] / chip.flops, cost["bytes accessed"] / chip.hbm_bandwidth
    moved = collectives(compiled.as_text().splitlines())
    return {
        "program": program.name,
        "devices": mesh.size,
        "batch_per_device": batch,
        "hbm_bytes_per_device": memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs,
        "hbm_limit_bytes": chip.hbm_bytes,
        "hbm_arguments_bytes": memory.argument_size_in_bytes,
        "hbm_temporaries_bytes": memory.temp_size_in_bytes,
        "hbm_outputs_bytes": outputs,
        "flops_per_device": cost["flops"],
        "bytes_accessed_per_device": cost["bytes accessed"],
        "bytes_accessed_per_image": cost["bytes accessed"] / batch,
        "compute_ms": 1e3 * compute,
        "memory_ms": 1e3 * traffic,
        "binds": "compute" if compute > traffic else "memory",
        "collectives": moved,
        "collective_bytes": sum(one["bytes"] for one in moved.values()),
        "compile_seconds": seconds,
    }


def collectives(lines: Iterable[str]) -> dict[str, dict[str, int]]:
    """Counts the collectives of a compiled program's text, and the bytes of their results on one device.

    An asynchronous one is counted where it ends. One inside of a loop is counted once.
    """
    pattern = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(-done)?\(")
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
    for kind, sizes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", text):
        digits = re.search(r"\d+", kind)
        bits = ELEMENT_BITS.get(kind) or int(digits[0] if digits else 0)
        total += bits * math.prod(int(size) for size in sizes.split(",") if size) // 8
    return total


def largest_batch(train: Callable[[int], dict], chip: Chip) -> tuple[int, dict]:
    """The most examples a device, in units of AUTO_UNIT, whose train step fits, and its analysis.

    Memory grows almost linearly with the batch, so two compilations say about where the limit lies, and a few more
    around there find it.

    Raises:
      DoesNotFitError: if not even AUTO_UNIT examples fit.
    """
    fits = {size: train(size * AUTO_UNIT) for size in (1, 2)}
    base, more = (fits[size]["hbm_bytes_per_device"] for size in (1, 2))
    low, high = 2, None
    size = max(3, int((chip.hbm_bytes - base) / max(more - base, 1)) + 1)
    while high is None or high - low > 1:
        try:
            fits[size] = train(size * AUTO_UNIT)
            low, size = size, size + 1
        except DoesNotFitError:
            high, size = size, size - 1
        if high is not None and not low < size < high:
            size = (low + high) // 2
    return low * AUTO_UNIT, fits[low]
