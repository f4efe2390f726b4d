"""How far the joints of a trained model move when it computes in bfloat16.

python -m dpose_jax.evaluation.precision --config=configs/lspet_tiny.py --workdir=DIR [--config.field=value]
"""

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches
from dpose_jax.diffusion.sampler import sampler_settings
from dpose_jax.evaluation.evaluator import restore
from dpose_jax.models import pose_sampler
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.runtime import app


def joint_distances(config, workdir: str) -> dict[str, np.ndarray]:
    """Distance of every joint between the two dtypes, over `config.eval.split` with `config.eval.flip`.

    Returns:
      For each result of `pose_sampler.result_names` an array (persons, J) of crop pixels.

    Raises:
      what `evaluation.run.restore` and `make_source` raise.
    """
    source, settings = make_source(config, config.eval.split, training=False), sampler_settings(config.sampler)
    variables = restore(config, workdir).variables
    options = {"flip": config.eval.flip, "seed": config.sampler.seed}
    predictors = []
    for dtype in ("float32", "bfloat16"):
        config = config.copy_and_resolve_references()
        config.model.dtype = dtype
        predict = pose_sampler.make_predict(build_model(config), build_schedule(config), settings, **options)
        predictors.append(jax.jit(predict))
    found: dict[str, list[np.ndarray]] = {name: [] for name in pose_sampler.result_names(settings)}
    for batch in tqdm(eval_batches(config, source, config.eval.batch_size), unit="batch", desc="compare"):
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
    CONFIG = config_flags.DEFINE_config_file("config", None, "The file of configs/ that was trained.", lock_config=True)
    WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(lambda: print(format_distances(joint_distances(CONFIG.value, WORKDIR.value))))
