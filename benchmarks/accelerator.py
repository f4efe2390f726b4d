"""Images a second of one GPU or TPU: inference and train step over batch and dtype, beside PyTorch."""

import os

from absl import flags

from benchmarks import peers, report
from benchmarks.throughput import KERNELS, WORKS, chosen, measure, peak
from dpose_jax.recipe import Recipe
from dpose_jax.workdir import recipe_flags

CONFIG = recipe_flags.define("A file of configs/.", "configs/coco_w32_256x192.py")
BATCHES = flags.DEFINE_list("batches", [str(2**k) for k in range(10)], "Images in a batch, rising.")
DTYPES = flags.DEFINE_list("dtypes", ["bfloat16", "float32"], "Types of the activations.")
WORK = flags.DEFINE_list("work", None, f"Of {'; '.join(WORKS)}, by their places from 0; default: all.")
PEER = flags.DEFINE_list("peer", [], "torch: the same HRNet in PyTorch, compiled, in the same call.")
NAMED = flags.DEFINE_bool("kernels", False, f"Profile each program too, and name its {KERNELS} costliest kernels.")
SECONDS = flags.DEFINE_float("seconds", 2.0, "To spend on timing each program.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", required=True)


def main() -> None:
    """Measures, prints the table and writes the report."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory too
    recipe, wanted = Recipe.from_config(CONFIG.value), peers.parse(PEER.value)
    if set(wanted) - {"torch"}:
        raise ValueError(f"--peer={','.join(PEER.value)}: must be torch")
    if wanted and recipe.model.backbone not in ("w32", "w48"):
        raise ValueError(f"model.backbone={recipe.model.backbone!r}: the peer has 'w32' and 'w48' alone")
    works, sizes = chosen(WORK.value), sorted(map(int, BATCHES.value))
    options: dict = {"with_torch": "torch" in wanted, "seconds": SECONDS.value, "kernels": NAMED.value}
    environment, rows = report.environment(), []
    for work in works:
        for dtype in DTYPES.value:
            for batch in sizes:
                found = measure(recipe.override({"model.dtype": dtype}), work, batch, **options)
                rows += [{"work": work, "dtype": dtype, "batch": batch} | row for row in found]
                if "note" in found[0]:  # ours does not fit
                    break
    protocol = {"backbone": recipe.model.backbone, "input_size": recipe.input_size, "stride": recipe.stride}
    protocol |= {"denoiser_channels": recipe.model.decoder_channels, "flip": False, "peaks": peak()}
    report.write(OUT.value, rows, environment=environment, protocol=protocol)
