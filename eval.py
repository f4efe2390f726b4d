"""Evaluates a workdir: python eval.py --config=configs/synthetic.py --workdir=runs/demo [--config.field=value] [--out=FILE]."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from dpose_jax.evaluation.run import evaluate

CONFIG = config_flags.DEFINE_config_file("config", None, "The file of configs/ that was trained.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.")
OUT = flags.DEFINE_string("out", None, "The report; WORKDIR/eval.json by default.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax logs every phase of a save
    try:
        evaluate(CONFIG.value, WORKDIR.value, OUT.value)
    except (ValueError, FileNotFoundError) as error:
        logging.debug("", exc_info=True)
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
