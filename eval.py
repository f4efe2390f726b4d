"""Evaluates a workdir: python eval.py --workdir=runs/demo [--config.eval.field=value] [--out=FILE]."""

from absl import flags

from dpose_jax.evaluation.evaluator import evaluate
from dpose_jax.runtime import app, multihost
from dpose_jax.workdir import recipe_flags

recipe_flags.define_beside_workdir()
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.", required=True)
OUT = flags.DEFINE_string("out", None, "The report, or WORKDIR/eval.json; joints and pictures: a folder of its name.")
multihost.define_flags()


def main():
    multihost.connect_from_flags(notes_sigterm=False)
    evaluate(recipe_flags.of_workdir(WORKDIR.value), WORKDIR.value, OUT.value)


if __name__ == "__main__":
    app.run(main)
