"""Evaluates a workdir.

python eval.py --config=configs/synthetic.py --workdir=runs/demo [--config.field=value] [--out=FILE]
"""

from absl import flags
from ml_collections import config_flags

from dpose_jax.evaluation.evaluator import evaluate
from dpose_jax.runtime import app, multihost

CONFIG = config_flags.DEFINE_config_file("config", None, "The file of configs/ that was trained.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.")
OUT = flags.DEFINE_string(
    "out", None, "The report, WORKDIR/eval.json by default; joints and pictures go to a folder of its name."
)
multihost.define_flags()


def main():
    multihost.connect_from_flags(notes_sigterm=False)
    evaluate(CONFIG.value, WORKDIR.value, OUT.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
