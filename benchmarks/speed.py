"""How fast each part is, beside its peers: one table of medians."""

import os

from absl import flags

from benchmarks import oks, peers, report, speed_rows
from dpose_jax.data.datasets import make_source
from dpose_jax.recipe import Recipe
from dpose_jax.workdir import recipe_flags

ROWS = {"heatmaps": speed_rows.heatmaps, "decode": speed_rows.decode, "sampler": speed_rows.sampler}
ROWS["oks"] = lambda wanted, recipe: oks.measure(oks.annotations(), false_persons=oks.FALSE_PERSONS.value)
ROWS["network"] = lambda wanted, recipe: speed_rows.network(wanted, recipe, list(map(int, BATCHES.value)), DTYPES.value)
ROWS["convolution"] = speed_rows.convolution
ROWS |= {"input": speed_rows.inputs, "start": speed_rows.start}
ROWS["predict"] = speed_rows.predict
ROWS["memory"] = speed_rows.memory
CONFIG = recipe_flags.define("The recipe whose data row `input` reads.", "configs/coco_w32_256x192.py")
PEER = flags.DEFINE_list("peer", [], "Peers: torch, diffusers, hrnet:FOLDER.")
BATCHES = flags.DEFINE_list("batches", [str(speed_rows.IMAGES)], "Batches of row `network`.")
DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Its dtypes of compute: float32, bfloat16.")
# Of a Cloud TPU v5e host with 4 chips (ct5lp-hightpu-4t): 112 vCPUs, cloud.google.com/tpu/docs/v5e#vm-types.
HOST_CORES = flags.DEFINE_integer("host_cores", 112, "Cores of a host, for what `input` could feed it.", 1)
NAMES = flags.DEFINE_list("rows", list(ROWS), "Which rows to measure; `oks` reads --annotations.")
flags.adopt_module_key_flags(oks)


def main() -> None:
    """Measures the chosen rows, prints the table and writes the report; what a row lacks stops it before the first."""
    recipe, wanted = Recipe.from_config(CONFIG.value), peers.parse(PEER.value)
    if unknown := sorted(set(NAMES.value) - set(ROWS)):
        raise ValueError(f"--rows={','.join(unknown)}: must be among {', '.join(ROWS)}")
    if "oks" in NAMES.value:
        oks.annotations()
    if "input" in NAMES.value:
        make_source(recipe, "train", training=True)
    speed_rows.check_peer(NAMES.value, wanted)
    speed_rows.leave_memory(os.environ)
    environment = report.environment()
    parts = (ROWS[name](wanted, recipe) for name in NAMES.value)
    table = report.kept(oks.OUT.value, parts, environment=environment)
    table += host_rows(table, HOST_CORES.value)
    report.write(oks.OUT.value, table, environment=environment)


def host_rows(table: list[dict], cores: int) -> list[dict]:
    """What a host could read: each of our rows `input` times its cores, by the processor time of one."""
    inputs = [row for row in table if row["work"] == "input" and row["who"].startswith("ours")]
    found = [row for row in inputs if not row["who"].endswith("alone")]
    shared = {"work": f"input, {cores} cores", "unit": "persons/s"}
    return [shared | {"who": row["who"], "value": cores * row["by_cpu_time"]} for row in found]
