"""Evaluates a workdir, or a published HRNet pose model on a data set.

python eval.py --workdir=runs/demo [--config.eval.field=value] [--out=FILE.json]
python eval.py --weights=hrnet_w32 --config.data.root=COCO --out=FILE.json
"""

from absl import flags

from dpose_jax.evaluation.evaluator import evaluate, evaluate_weights
from dpose_jax.models.weights.published import read_pose_model
from dpose_jax.runtime import app, multihost
from dpose_jax.workdir import recipe_flags, weights_flags

recipe_flags.define_beside_workdir()
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.")
WEIGHTS = weights_flags.define("Instead, a published HRNet, by its own protocol")
OUT = flags.DEFINE_string("out", None, "The report, or WORKDIR/eval.json; joints and pictures: a folder of its name.")
multihost.define_flags()


def main():
    """Evaluates what the flags name."""
    multihost.connect_from_flags(notes_sigterm=False)
    if WEIGHTS.value is None:
        evaluate(recipe_flags.of_workdir(WORKDIR.value), WORKDIR.value, OUT.value)
        return
    if WORKDIR.value or not OUT.value:
        raise ValueError("--weights: needs --out=FILE.json, and no --workdir")
    recipe, variables = read_pose_model(WEIGHTS.value, **weights_flags.options())
    evaluate_weights(recipe_flags.of_weights(recipe), variables, WEIGHTS.value, OUT.value)


if __name__ == "__main__":
    app.run(main)
