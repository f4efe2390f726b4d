"""How far the joints of a trained model move when it computes in bfloat16.

python -m dpose_jax.evaluation.precision --workdir=DIR [--config.field=value]
"""

import jax
import numpy as np
from absl import flags

from dpose_jax.data.datasets import make_source
from dpose_jax.evaluation.evaluator import restore
from dpose_jax.evaluation.predict_split import predict_split
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app
from dpose_jax.workdir import recipe_flags


def joint_distances(recipe: Recipe, workdir: str) -> dict[str, np.ndarray]:
    """Distances (persons, J) in crop pixels between the joints of the two dtypes, by result name.

    Over `eval.split` with `eval.flip`. Raises what `evaluator.restore` and `make_source` raise.
    """
    source = make_source(recipe, recipe.eval.split, training=False)
    variables = restore(recipe, workdir).variables
    samplers = [PoseSampler.of(recipe.override({"model.dtype": dtype})) for dtype in ("float32", "bfloat16")]
    programs = [jax.jit(sampler.joints) for sampler in samplers]
    rows = predict_split(recipe, source, lambda *inputs: [program(variables, *inputs) for program in programs])
    wide, narrow = rows.outputs
    return {name: np.linalg.norm(wide[name][0] - narrow[name][0], axis=-1) for name in samplers[0].names}


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

    def main():
        print(format_distances(joint_distances(recipe_flags.of_workdir(WORKDIR.value), WORKDIR.value)))

    app.run(main)
