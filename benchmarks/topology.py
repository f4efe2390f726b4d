"""Compile the train step and the sampler for a TPU slice, without one: memory, FLOPs, traffic, collectives.

python benchmark.py topology --config=configs/coco_w32_256x192.py --topology=v5e:4x4 --out=F.json [--batch=32 | auto]

Needs `pip install -e ".[topology]"`. The figures are the compiler's; nothing is run.
"""

import dataclasses

import jax
from absl import flags
from dpose_jax.training.fields import check_fields
from ml_collections import config_flags

from benchmarks import report
from benchmarks.chips import parse_topology, slice_mesh
from benchmarks.xla_cost import analyse, largest_batch, sampler_program, train_program
from dpose_jax.runtime import sharding

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "KIND:SHAPE, such as v5e:4x4.", required=True)
BATCH = flags.DEFINE_string(
    "batch",
    None,
    "Examples a device, or auto: the most that fit, of 8, 16, ..., 128, 256, 384, ...; the config's by default.",
)
SAMPLER = flags.DEFINE_bool("sampler", True, "Compile prediction too, not the train step alone.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", required=True)
flags.mark_flag_as_required("config")


def main() -> None:
    """Compiles, prints the table and writes the report, whose own fields are those of the train step."""
    chip, shape = parse_topology(TOPOLOGY.value)
    config = CONFIG.value
    check_fields(config)
    jax.config.update("jax_platforms", "cpu")  # libtpu would look for chips
    environment = report.environment() | {"versions": report.versions("jax", "jaxlib", "libtpu", "flax")}
    mesh = slice_mesh(chip, shape)
    batch = batch_per_device(config, mesh, BATCH.value)

    def train(examples):
        return analyse(train_program(config, mesh, examples), chip, mesh)

    step = largest_batch(train, chip.hbm_bytes, config.train.accumulate) if batch is None else train(batch)
    both = {}
    if SAMPLER.value:
        both["sampler"] = analyse(sampler_program(config, mesh, step["batch_per_device"]), chip, mesh)
    protocol = {
        "topology": TOPOLOGY.value,
        "chip": dataclasses.asdict(chip),
        "backbone": config.model.backbone,
        "input_size": list(config.input_size),
        "dtype": config.model.dtype,
        "remat": config.model.remat,
        "fsdp": config.train.fsdp,
        "accumulate": config.train.accumulate,
    }
    table = [{key: value for key, value in row.items() if key != "collectives"} for row in (step, *both.values())]
    report.write(OUT.value, table, environment=environment, protocol=protocol, **step, **both)


def batch_per_device(config, mesh: jax.sharding.Mesh, given: str | None) -> int | None:
    """Examples a device; None for `auto`.

    Raises:
      ValueError: if `given` is not a positive number or `auto`, or the devices do not divide the config's batch.
    """
    parts = config.train.accumulate
    if given == "auto":
        return None
    if given is None:
        sharding.check_batch_size("train.batch_size", config.train.batch_size, mesh, parts)
        return config.train.batch_size // mesh.size
    if not given.isdecimal() or int(given) < 1 or int(given) % parts:
        raise ValueError(f"--batch={given}: must be auto or a positive multiple of train.accumulate={parts}")
    return int(given)
