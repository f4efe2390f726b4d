"""Trains a config: python train.py --config=configs/synthetic.py --workdir=runs/demo [--config.field=value] [--dry_run]."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from dpose_jax.training.loop import DivergedError, dry_run, train

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go; a run resumes from its own workdir.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check everything, run one batch, say what the run will need, stop.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax logs every phase of a save
    try:
        (dry_run if DRY_RUN.value else train)(CONFIG.value, WORKDIR.value)
    except (ValueError, FileNotFoundError, DivergedError) as error:
        logging.debug("", exc_info=True)
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
