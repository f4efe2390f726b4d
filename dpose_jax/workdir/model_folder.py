"""A trained model as a folder of two files: weights in safetensors, everything else in JSON."""

import hashlib
import os
from collections.abc import Mapping

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.models.weights.fill import BACKBONE
from dpose_jax.recipe import Recipe
from dpose_jax.workdir.compatibility import as_stored, from_stored
from dpose_jax.workdir.files import read_json, write_bytes, write_json

WEIGHTS_FILE, METADATA_FILE = "model.safetensors", "model.json"
FORMAT = 1
# The model that comes with the package, trained on drawn people alone.
SHIPPED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "assets")


def save(folder: str, variables: Mapping, recipe: Recipe, **trained) -> None:
    """Writes model.safetensors and model.json into `folder`, each atomically; of a plain HRNet no denoiser.

    Args:
      variables: `params` and `batch_stats`.
      recipe: of the model.
      trained: what else model.json has under `trained`, JSON values (the step).
    """
    flat = _needed(recipe, traverse_util.flatten_dict(jax.device_get(dict(variables)), sep="/"))
    data = safetensors.numpy.save({name: np.ascontiguousarray(leaf) for name, leaf in flat.items()})
    metadata = {
        "format": FORMAT,
        "sha256": hashlib.sha256(data).hexdigest(),
        "trained": trained,
        "config": as_stored(recipe),
    }
    write_bytes(os.path.join(folder, WEIGHTS_FILE), data)
    # Last, so that a folder with both belongs together; the checksum reveals a pair that does not.
    write_json(os.path.join(folder, METADATA_FILE), metadata)


def load(path: str) -> tuple[Recipe, dict, dict]:
    """Reads a folder that `save` wrote; `path` is the folder or its model.safetensors.

    Returns:
      recipe, variables (numpy) and the content of model.json.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if one is damaged, they do not belong together, or the weights are not those of the config's
        model; names the file and the tensors.
    """
    folder = os.path.dirname(path) or "." if os.path.basename(path) == WEIGHTS_FILE else path
    weights_path, metadata_path = (os.path.join(folder, name) for name in (WEIGHTS_FILE, METADATA_FILE))
    for needed in (metadata_path, weights_path):
        if not os.path.isfile(needed):
            raise FileNotFoundError(f"{needed}: missing; a model is a folder with {WEIGHTS_FILE} and {METADATA_FILE}")
    metadata = _read_metadata(metadata_path)
    with open(weights_path, "rb") as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != metadata["sha256"]:
        raise ValueError(f"{weights_path}: damaged, or not the weights of {metadata_path}: the checksum differs")
    try:
        flat = safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{weights_path}: no safetensors file: {error}") from error
    recipe = from_stored(metadata["config"], metadata_path)
    try:
        model = build_model(recipe)
    except ValueError as error:
        raise ValueError(f"{metadata_path}: {error}") from error
    expected = _needed(recipe, traverse_util.flatten_dict(dict(abstract_variables(model)), sep="/"))
    flat = _needed(recipe, flat)
    check_tensors(weights_path, flat, expected)
    return recipe, traverse_util.unflatten_dict(flat, sep="/"), metadata


def _needed(recipe: Recipe, flat: dict) -> dict:
    """Of tensors by path, those that the recipe's model predicts with."""
    if not recipe.plain:
        return flat
    return {path: tensor for path, tensor in flat.items() if path.split("/")[1] in (BACKBONE, "coarse_head")}


def check_tensors(file: str, found: Mapping, expected: Mapping) -> None:
    """Raises ValueError, naming the file and the first tensors that are missing, unknown or of another shape."""
    wrong = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"{name}: unknown" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if found[name].shape != expected[name].shape:
            wrong.append(f"{name}: {found[name].shape} there, the model has {expected[name].shape}")
    if wrong:
        more = f"\n  and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{file}: not the weights of its config:\n  " + "\n  ".join(wrong[:8]) + more)


def _read_metadata(path: str) -> dict:
    metadata = read_json(path)
    for name in ("format", "sha256", "config"):
        if not isinstance(metadata, dict) or name not in metadata:
            raise ValueError(f"{path}: describes no model of dpose_jax: has no {name}")
    if metadata["format"] != FORMAT:
        raise ValueError(f"{path}: format {metadata['format']!r}, this version reads format {FORMAT}")
    trained = metadata.get("trained")
    return metadata | {"trained": trained if isinstance(trained, dict) else {}}
