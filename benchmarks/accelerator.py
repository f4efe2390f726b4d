"""Images a second of one GPU or TPU: inference and train step over batch and dtype, beside PyTorch."""

import os

from absl import flags

from benchmarks import peers, report
from benchmarks.accelerator_rows import measure_lacking, prepare_memory, stored_rows
from benchmarks.throughput import KERNELS, WORKS, chosen
from dpose_jax.recipe import Recipe
from dpose_jax.workdir import recipe_flags

CONFIG = recipe_flags.define("A file of configs/.", "configs/coco_w32_256x192.py")
BATCHES = flags.DEFINE_list("batches", ["128", "32", "1", "512", "8"], "Images in a batch, in the order of measuring.")
DTYPES = flags.DEFINE_list("dtypes", ["bfloat16", "float32"], "Types of the activations.")
WORK = flags.DEFINE_list("work", None, f"Of {'; '.join(WORKS)}, by their places from 0; default: all.")
PEER = flags.DEFINE_list("peer", [], "torch: the same HRNet in PyTorch, compiled, in the same call.")
NAMED = flags.DEFINE_bool("kernels", False, f"Profile each program too, and name its {KERNELS} costliest kernels.")
SECONDS = flags.DEFINE_float("seconds", 2.0, "To spend on timing each program.")
OUT = flags.DEFINE_string(
    "out", None, "The report, a JSON file; the table goes beside it as .md. Rows that it has are kept.", required=True
)


def main() -> None:
    """Measures what the report lacks and prints the table. Raises ValueError, which names them, if programs failed."""
    recipe, wanted = Recipe.from_config(CONFIG.value), peers.parse(PEER.value)
    if set(wanted) - {"torch"}:
        raise ValueError(f"--peer={','.join(PEER.value)}: must be torch")
    if wanted and recipe.model.backbone not in ("w32", "w48"):
        raise ValueError(f"model.backbone={recipe.model.backbone!r}: the peer has 'w32' and 'w48' alone")
    works, sizes = chosen(WORK.value), list(map(int, BATCHES.value))
    prepare_memory(os.environ)
    options = {"seconds": SECONDS.value, "kernels": NAMED.value}
    failed = measure_lacking(recipe, works, DTYPES.value, sizes, wanted, OUT.value, options)
    print(report.table(stored_rows(OUT.value)))
    if failed:
        raise ValueError("; ".join(failed))
