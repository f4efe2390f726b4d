"""K hypotheses of a joint from one heatmap: its highest peaks, and draws from it as a density."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dpose_jax.data import crop
from dpose_jax.data.sample import Source
from dpose_jax.evaluation.predict_split import Rows, predict_split
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.pose.codec import Codec
from dpose_jax.recipe import Recipe
from dpose_jax.workdir.checkpoints import Restored, read_variables
from dpose_jax.workdir.compatibility import stored_recipe


def plain_network(workdir: str, recipe: Recipe) -> tuple[Recipe, Restored]:
    """The recipe, with the flip test and batch size of `recipe`, and the parameters of a plain HRNet's workdir.

    Raises ValueError if it is not one, or of other joints; FileNotFoundError if there is none.
    """
    stored = stored_recipe(workdir)
    if not stored.plain:
        raise ValueError(f"plain={workdir!r}: loss.diffusion={stored.loss.diffusion:g}: must be 0, a plain HRNet")
    if stored.joints != recipe.joints:
        message = f"joint_set={stored.joints.name!r}: must be {recipe.joints.name!r}, that of the model"
        raise ValueError(f"plain={workdir!r}: {message}")
    changed = {"eval.flip": recipe.eval.flip, "eval.batch_size": recipe.eval.batch_size}
    restored = read_variables(workdir, which=recipe.eval.checkpoint, ema=recipe.eval.ema)
    return stored.override(changed), restored


def collect(recipe: Recipe, source: Source, sampler: PoseSampler, variables, count: int) -> Rows:
    """`from_heatmaps` of every person of a source: the rows' outputs are dicts by name of the sampler's results.

    The recipe is that of the model; K = `count`, at least 2. The draws are seeded by `sampler.seed` and the person.
    """
    spec, persons = crop.crop_spec(recipe), [source[i] for i in range(len(source))]
    matrices = [crop.view_matrix(crop.padded_view(person.bbox, spec), spec) for person in persons]
    pairs = zip(matrices, persons, strict=True)
    truth = np.array([crop.map_points(matrix, person.keypoints[:, :2]) for matrix, person in pairs], np.float32)
    row_of = {person.annotation_id: row for row, person in enumerate(persons)}

    @jax.jit
    def run(variables, crops, ids, its):
        keys = jax.vmap(lambda person: jax.random.fold_in(jax.random.key(sampler.seed), person))(ids)
        maps, codec = sampler.heatmaps(variables, crops, ids), sampler.model.codec
        return {name: from_heatmaps(codec, one, codec.to_heatmap(its), keys, count) for name, one in maps.items()}

    def predict(crops, ids):
        return run(variables, crops, ids, truth[[row_of.get(int(person), 0) for person in ids]])  # 0: of padding

    variables = jax.device_put(variables)
    return predict_split(recipe, source, predict)


def from_heatmaps(codec: Codec, maps: Array, truth: Array, keys: Array, count: int) -> dict[str, Array]:
    """Hypotheses and density of maps (B, H, W, J), of true joints (B, J, 2) in heatmap pixels, and of keys (B,).

    The density is the positive part over its sum, constant within a pixel. Returns, in crop pixels:
      peaks, heights: the K = `count` highest local maxima, refined, (B, K, J, 2), and their values, (B, K, J).
      draws: K places from the density, (B, K, J, 2).
      deviation: root of the trace of the density's covariance, (B, J).
      at_truth: the probability of the true joint's pixel, the nearest one for a joint off the map, (B, J).
    """
    batch, height, width, joints = maps.shape
    maps = maps.astype(jnp.float32)
    x, y, heights = local_maxima(maps, count)
    peaks = jax.vmap(lambda x, y: codec.refined(maps, x, y, codec.refine), in_axes=1, out_axes=1)(x, y)
    flat = jnp.moveaxis(maps, -1, 1).reshape(batch, joints, -1)
    # A map without any positive value says nothing: a uniform density.
    density = jnp.where(jnp.max(flat, axis=-1, keepdims=True) > 0, jnp.maximum(flat, 0), 1.0)
    density /= jnp.sum(density, axis=-1, keepdims=True)
    pixels = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), axis=-1).reshape(-1, 2)
    places = codec.to_crop(pixels.astype(jnp.float32))
    mean = density @ places
    offset = places - mean[..., None, :]
    nearest = jnp.clip(jnp.round(truth), 0, jnp.array([width, height]) - 1).astype(jnp.int32)
    index = (nearest[..., 1] * width + nearest[..., 0])[..., None]
    return {
        "peaks": codec.to_crop(peaks),
        "heights": heights,
        "draws": codec.to_crop(draw(density, width, keys, count)),
        "deviation": jnp.sqrt(jnp.sum(density * jnp.sum(offset**2, axis=-1), axis=-1)),
        "at_truth": jnp.take_along_axis(density, index, axis=-1)[..., 0],
    }


def local_maxima(maps: Array, count: int) -> tuple[Array, Array, Array]:
    """The highest pixels of their 3 x 3 neighbours: columns and rows, (B, K, J) int32, and values, (B, K, J).

    In order of height, of maps (B, H, W, J). Where fewer than K = `count` are above 0, the rest repeat the highest
    pixel, with value 0.
    """
    batch, _, width, joints = maps.shape
    highest = jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    values = jnp.where(maps == highest, maps, -jnp.inf)
    heights, index = jax.lax.top_k(jnp.moveaxis(values, -1, 1).reshape(batch, joints, -1), count)
    heights, index = jnp.moveaxis(heights, -1, 1), jnp.moveaxis(index, -1, 1)
    index = jnp.where(heights > 0, index, index[:, :1])
    return index % width, index // width, jnp.maximum(heights, 0)


def draw(density: Array, width: int, keys: Array, count: int) -> Array:
    """K = `count` places (B, K, J, 2) in heatmap pixels from probabilities of pixels (B, J, H W), uniform in each."""
    batch, joints, pixels = density.shape
    chance = jax.vmap(lambda key: jax.random.uniform(key, (3, joints, count)))(keys)
    below = jnp.cumsum(density, axis=-1)
    search = jax.vmap(jax.vmap(lambda one, sought: jnp.searchsorted(one, sought, side="right")))
    index = jnp.minimum(search(below, chance[:, 0] * below[..., -1:]), pixels - 1)
    places = jnp.stack([index % width, index // width], axis=-1) + jnp.moveaxis(chance[:, 1:], 1, -1) - 0.5
    return jnp.swapaxes(places, 1, 2)
