"""Compile the train step and the sampler for a TPU slice, without one: memory, FLOPs, traffic, collectives.

python benchmark.py topology --config=configs/coco_w32_256x192.py --topology=v5e:4x4 --out=F.json [--batch=32 | auto]

Needs `pip install -e ".[topology]"`. The figures are the compiler's; nothing is run.
"""

import jax
from absl import flags

from benchmarks import report
from benchmarks.chips import parse_topology, slice_mesh
from benchmarks.xla_cost import analyse, largest_batch, sampler_program, train_program
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import sharding
from dpose_jax.workdir import recipe_flags

CONFIG = recipe_flags.define("A file of configs/.")
TOPOLOGY = flags.DEFINE_string("topology", None, "KIND:SHAPE, such as v5e:4x4.", required=True)
BATCH = flags.DEFINE_string(
    "batch", None, "Examples a device, or auto: the most that fit, of 8, 16, ..., 128, 256, ...; default: the recipe's."
)
SAMPLER = flags.DEFINE_bool("sampler", True, "Compile prediction too, not the train step alone.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", required=True)
flags.mark_flag_as_required("config")


def main() -> None:
    """Compiles, prints the table and writes the report. The report's own fields are those of the train step."""
    chip, shape = parse_topology(TOPOLOGY.value)
    recipe = Recipe.from_config(CONFIG.value)
    jax.config.update("jax_platforms", "cpu")  # libtpu would look for chips
    environment = report.environment() | {"versions": report.versions("jax", "jaxlib", "libtpu", "flax")}
    mesh = slice_mesh(chip, shape)

    def train(examples):
        return analyse(train_program(recipe, mesh, examples), chip, mesh)

    if BATCH.value == "auto":
        step = largest_batch(train, recipe.train.accumulate)
    else:
        step = train(batch_per_device(recipe, mesh, BATCH.value))
    both = {}
    if SAMPLER.value:
        both["sampler"] = analyse(sampler_program(recipe, mesh, step["batch_per_device"]), chip, mesh)
    protocol = {"topology": TOPOLOGY.value, "chip": chip._asdict(), "recipe": recipe.flatten()}
    table = [{key: value for key, value in row.items() if key != "collectives"} for row in (step, *both.values())]
    report.write(OUT.value, table, environment=environment, protocol=protocol, **step, **both)


def batch_per_device(recipe: Recipe, mesh: jax.sharding.Mesh, given: str | None) -> int:
    """Examples a device: `given`, or by default the recipe's batch over the devices.

    Raises:
      ValueError: if `given` is no positive multiple of `train.accumulate`, or the devices do not divide the batch.
    """
    parts = recipe.train.accumulate
    if given is None:
        sharding.check_batch_size("train.batch_size", recipe.train.batch_size, mesh, parts)
        return recipe.train.batch_size // mesh.size
    if not given.isdecimal() or int(given) < 1 or int(given) % parts:
        raise ValueError(f"--batch={given}: must be auto or a positive multiple of train.accumulate={parts}")
    return int(given)
