"""Compile the train step and the sampler for a TPU slice, without one: memory, FLOPs, traffic, collectives."""

import jax
from absl import flags

from benchmarks import report
from benchmarks.xla_cost import analyse, largest_batch, parse_topology, sampler_program, slice_mesh, train_program
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import sharding
from dpose_jax.workdir import recipe_flags

CONFIG = recipe_flags.define("A file of configs/.")
TOPOLOGY = flags.DEFINE_string("topology", None, "KIND:SHAPE, such as v5e:4x4.", required=True)
BATCH = flags.DEFINE_string("batch", None, "Examples a device, or auto: the most that fit; default: the recipe's.")
SAMPLER = flags.DEFINE_bool("sampler", True, "Compile prediction too, not the train step alone.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", required=True)
flags.mark_flag_as_required("config")


def main() -> None:
    """Compiles, prints the table and writes the report. The report's own fields are those of the train step."""
    chip, _ = parse_topology(TOPOLOGY.value)
    recipe, batch = Recipe.from_config(CONFIG.value), BATCH.value
    jax.config.update("jax_platforms", "cpu")  # libtpu would look for chips
    environment, mesh = report.environment(), slice_mesh(TOPOLOGY.value)
    accumulate, every = recipe.train.accumulate, recipe.diffusion.every
    parts = accumulate * every

    def train(examples):
        return analyse(train_program(recipe, mesh, examples), chip, mesh)

    if batch == "auto":
        step = largest_batch(train, parts)
    elif batch is None:
        sharding.check_batch_size("train.batch_size", recipe.train.batch_size, mesh, accumulate, every)
        step = train(recipe.train.batch_size // mesh.size)
    elif not batch.isdecimal() or int(batch) < 1 or int(batch) % parts:
        fields = f"train.accumulate={accumulate}" + (f" times diffusion.every={every}" if every > 1 else "")
        raise ValueError(f"--batch={batch}: must be auto or a positive multiple of {fields}")
    else:
        step = train(int(batch))
    if SAMPLER.value:
        step["sampler"] = analyse(sampler_program(recipe, mesh, step["batch_per_device"]), chip, mesh)
    protocol = {"topology": TOPOLOGY.value, "chip": chip._asdict(), "recipe": recipe.flatten()}
    rows = [step, step["sampler"]] if SAMPLER.value else [step]
    table = [{key: row[key] for key in row if key not in ("collectives", "sampler")} for row in rows]
    report.write(OUT.value, table, environment=environment, protocol=protocol, **step)
