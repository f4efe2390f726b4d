"""The loop that predicts every person of a split, for evaluations and benchmarks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from dpose_jax.data.loader import BadRecords, eval_batches
from dpose_jax.data.sample import Source
from dpose_jax.models.pose_sampler import to_image_pixels
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import multihost, sharding


class Stopped(Exception):
    """`predict_split` was asked to stop."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Decoded joints of N persons of a source; raises ValueError if a shape is wrong or a value not finite."""

    index: np.ndarray  # (N,) int, into the source; each at most once. A person that is not listed was skipped.
    keypoints: np.ndarray  # (N, J, 2) float, image pixels
    scores: np.ndarray  # (N, J) float, joint scores (heatmap peaks)

    def __post_init__(self):
        count = len(self.index)
        if self.keypoints.shape != (*self.scores.shape, 2) or len(self.scores) != count:
            shapes = f"{self.keypoints.shape} and {self.scores.shape}"
            raise ValueError(f"predictions: {count} indices need keypoints (N, J, 2) and scores (N, J), got {shapes}")
        values, counts = np.unique(self.index, return_counts=True)
        if len(values) != count:
            raise ValueError(f"predictions: index must not repeat, got {values[counts > 1][:8].tolist()} twice")
        finite = np.isfinite(self.scores).all(axis=1) & np.isfinite(self.keypoints).all(axis=(1, 2))
        if not finite.all():
            raise ValueError(f"predictions: not finite for index {np.asarray(self.index)[~finite][:8].tolist()}")


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a split was predicted as: N persons in source order, without the unreadable ones."""

    index: np.ndarray  # (N,) int, into the source
    to_image: np.ndarray  # (N, 2, 3) affine maps from crop to image pixels
    outputs: Any  # what the predicting function returned, as numpy arrays of N rows

    def predictions(self, keypoints: np.ndarray, scores: np.ndarray) -> Predictions:
        """Keypoints (N, J, 2) in crop pixels and scores (N, J) as predictions in image pixels."""
        return Predictions(self.index, to_image_pixels(keypoints, self.to_image), scores)


def predict_split(
    recipe: Recipe,
    source: Source,
    predict: Callable[[Any, Any], Any],
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Rows:
    """Predicts every person of a source once, in batches of `batch_size` (`eval.batch_size`) over all processes.

    `predict` maps crops (B, Hx, Wx, 3) uint8 and person IDs (B,) int32 to any tree of arrays with B rows, of at most 32
    bits a number. Its dicts come back with sorted keys. With a mesh, all processes of the run call this together; each
    predicts its share of the batch, split over the mesh as `predict`'s arrays are, and gets all rows. Without one,
    a single process predicts on its default device.

    Raises ValueError if too many records are unreadable (`data.max_bad_share`), Stopped after a batch at which `stop`
    returned True.
    """
    shard = (0, 1) if mesh is None else (jax.process_index(), jax.process_count())
    batches = eval_batches(recipe, source, batch_size or recipe.eval.batch_size, shard=shard)
    parts = []
    bar = tqdm(batches, unit="batch", desc="compile", disable=not multihost.is_first())
    for batch in bar:
        inputs = {key: batch[key] for key in ("image", "annotation_id")}
        if mesh is None:
            outputs = jax.device_get(predict(inputs["image"], inputs["annotation_id"]))
        else:
            split = sharding.put_batch(inputs, mesh)
            outputs = jax.tree.map(sharding.local_rows, predict(split["image"], split["annotation_id"]))
        bar.set_description("predict", refresh=False)
        parts.append({key: batch[key] for key in ("index", "mask", "bad_index", "to_image")} | {"outputs": outputs})
        if stop():
            raise Stopped
    rows: Any = multihost.gather(jax.tree.map(lambda *columns: np.concatenate(columns), *parts))
    BadRecords(source, recipe.data.max_bad_share).add(rows["bad_index"])
    order = np.argsort(rows["index"], kind="stable")
    order = order[rows["mask"][order] > 0]
    rows = jax.tree.map(lambda column: column[order], rows)
    return Rows(rows["index"], rows["to_image"], rows["outputs"])
