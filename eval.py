"""Evaluates a workdir, a model folder, or a published HRNet pose model on a data set.

python eval.py --workdir=runs/demo [--config.eval.field=value] [--out=FILE.json]
python eval.py --model=FOLDER|hf:OWNER/REPO --out=FILE.json
python eval.py --weights=hrnet_w32 --config.data.root=COCO --out=FILE.json
"""

from dpose_jax.runtime import start

start.begin()

from absl import flags

from dpose_jax.evaluation.evaluator import evaluate, evaluate_weights
from dpose_jax.models.weights.published import read_pose_model
from dpose_jax.runtime import app, multihost
from dpose_jax.workdir import recipe_flags, weights_flags
from dpose_jax.workdir.checkpoints import Restored

recipe_flags.define_beside_workdir()
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.")
MODEL = flags.DEFINE_string("model", None, "Instead, a model folder, or hf:OWNER/REPO.")
WEIGHTS = weights_flags.define("Instead, a published HRNet, by its own protocol")
OUT = flags.DEFINE_string("out", None, "The report, or WORKDIR/eval.json; joints and pictures: a folder of its name.")
multihost.define_flags()


def main():
    """Evaluates what the flags name."""
    multihost.connect_from_flags(notes_sigterm=False)
    given = {flag.name: flag.value for flag in (WORKDIR, MODEL, WEIGHTS) if flag.value is not None}
    if len(given) > 1:
        raise ValueError(f"give one of --{' and --'.join(given)}")
    if not given:
        raise ValueError("give one of --workdir, --model and --weights")
    if MODEL.value is None and WEIGHTS.value is None:
        evaluate(recipe_flags.of_workdir(WORKDIR.value), WORKDIR.value, OUT.value)
        return
    if not OUT.value:
        raise ValueError(f"--{next(iter(given))}: needs --out=FILE.json")
    if WEIGHTS.value is None:
        recipe, restored = recipe_flags.of_workdir_or_model(None, MODEL.value)
    else:
        published, variables = read_pose_model(WEIGHTS.value, **weights_flags.options())
        recipe = recipe_flags.of_weights(published)
        restored = Restored(variables, None, averaged=False, seed=recipe.seed, training_device=None)
    evaluate_weights(recipe, restored, given, OUT.value)


if __name__ == "__main__":
    app.run(main)
