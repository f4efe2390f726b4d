"""Trains a config.

python train.py --config=configs/synthetic.py --workdir=runs/demo [--config.field=value] [--dry_run]

Several hosts run the same command, on Cloud TPU, GKE and SLURM as it is, elsewhere with --coordinator_address,
--num_processes and --process_id (docs/scale.md). After SIGTERM it saves and ends with status 75: start it again.
"""

from dpose_jax.runtime import start

start.begin()

from absl import flags

from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app, multihost
from dpose_jax.training.dry_run import dry_run
from dpose_jax.training.loop import train
from dpose_jax.training.metrics import DivergedError
from dpose_jax.workdir import recipe_flags

CONFIG = recipe_flags.define("A file of configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go; a run resumes from its own workdir.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check everything, take four steps, say what the run will need, stop.")
multihost.define_flags()


def main():
    multihost.connect_from_flags(notes_sigterm=not DRY_RUN.value)
    (dry_run if DRY_RUN.value else train)(Recipe.from_config(CONFIG.value), WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, errors=(DivergedError,))
