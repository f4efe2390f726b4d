"""How far the joints of a trained model move when it computes in bfloat16.

python -m dpose_jax.evaluation.precision --workdir=DIR [--config.field=value]
"""

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches
from dpose_jax.evaluation.evaluator import restore
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app
from dpose_jax.workdir import recipe_flags


def joint_distances(recipe: Recipe, workdir: str) -> dict[str, np.ndarray]:
    """Distance of every joint between the two dtypes, over `eval.split` with `eval.flip`.

    Returns:
      For each result of `PoseSampler.names` an array (persons, J) of crop pixels.

    Raises:
      what `evaluator.restore` and `make_source` raise.
    """
    source = make_source(recipe, recipe.eval.split, training=False)
    variables = restore(recipe, workdir).variables
    samplers = [PoseSampler.of(recipe.override({"model.dtype": dtype})) for dtype in ("float32", "bfloat16")]
    predictors = [jax.jit(sampler.joints) for sampler in samplers]
    found: dict[str, list[np.ndarray]] = {name: [] for name in samplers[0].names}
    for batch in tqdm(eval_batches(recipe, source, recipe.eval.batch_size), unit="batch", desc="compare"):
        wide, narrow = (predict(variables, batch["image"], batch["annotation_id"]) for predict in predictors)
        for name, distances in found.items():
            distance = np.linalg.norm(np.asarray(wide[name][0]) - np.asarray(narrow[name][0]), axis=-1)
            distances.append(distance[batch["mask"] > 0])
    return {name: np.concatenate(distances) for name, distances in found.items()}


def format_distances(found: dict[str, np.ndarray]) -> str:
    """A Markdown table: quantiles of the distances in crop pixels, and the share above one pixel in percent."""
    lines = ["| result | median | 95% | 99% | largest | above 1 px |", "|---|---|---|---|---|---|"]
    for name, distances in found.items():
        quantiles = " | ".join(f"{value:.3f}" for value in np.quantile(distances, (0.5, 0.95, 0.99, 1.0)))
        lines.append(f"| {name} | {quantiles} | {100 * np.mean(distances > 1):.2f}% |")
    return "\n".join(lines)


if __name__ == "__main__":
    recipe_flags.define_beside_workdir()
    WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.")
    flags.mark_flags_as_required(["workdir"])
    app.run(lambda: print(format_distances(joint_distances(recipe_flags.of_workdir(WORKDIR.value), WORKDIR.value))))
