"""A trained model as a folder of two files: weights in safetensors, everything else in JSON."""

import hashlib
import os
from collections.abc import Mapping

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from dpose_jax.models.diffusion_pose import DiffusionPose, build_model
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.models.weights import hub
from dpose_jax.models.weights.fill import BACKBONE
from dpose_jax.recipe import Recipe
from dpose_jax.workdir.compatibility import as_stored, from_stored
from dpose_jax.workdir.files import SHORT, placed, read_json, write_bytes, write_json
from dpose_jax.workdir.once import check_once, facts_of

WEIGHTS_FILE, METADATA_FILE = "model.safetensors", "model.json"
FORMAT = 1
# The model that comes with the package.
SHIPPED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "assets")


def save(folder: str, variables: Mapping, recipe: Recipe, **trained) -> None:
    """Writes model.safetensors and model.json into `folder`, each atomically; of a plain HRNet no denoiser.

    `variables` are `params` and `batch_stats` of the model of `recipe`; `trained` is what else model.json holds, JSON
    values (the step).
    """
    flat = _needed(recipe, traverse_util.flatten_dict(jax.device_get(dict(variables)), sep="/"))
    data = safetensors.numpy.save({name: np.ascontiguousarray(leaf) for name, leaf in flat.items()})
    metadata = {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest()}
    metadata |= {"trained": trained, "config": as_stored(recipe)}
    write_bytes(os.path.join(folder, WEIGHTS_FILE), data)
    # Last, so that a folder with both belongs together; the checksum reveals a pair that does not.
    write_json(os.path.join(folder, METADATA_FILE), metadata)


def load(path: str) -> tuple[Recipe, dict, dict]:
    """Recipe, variables (numpy) and the content of model.json, of a folder that `save` wrote.

    `path` is the folder, its model.safetensors, or `hf:OWNER/REPO`, which is downloaded once. Raises FileNotFoundError
    if a file is missing, ConnectionError if the hub does not give one, and ValueError if one is damaged, they do not
    belong together, or the weights are not those of the config's model; it names the file and the tensors.
    """
    if path.startswith(hub.HUB):
        path = _downloaded(path)
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
    # KeyError: of a type that numpy lacks, such as bfloat16.
    with placed(f"{weights_path}: no safetensors file of float32", (safetensors.SafetensorError, KeyError, ValueError)):
        flat = safetensors.numpy.load(data)
    recipe = from_stored(metadata["config"], metadata_path)
    with placed(metadata_path):
        model = build_model(recipe)
    flat = _needed(recipe, flat)
    # Tracing the model takes longer than all the rest.
    facts = metadata["sha256"], repr((recipe, recipe.joints)), facts_of(model.backbone)
    check_once(lambda: _check(recipe, model, flat, weights_path), *facts)
    return recipe, traverse_util.unflatten_dict(flat, sep="/"), metadata


def _check(recipe: Recipe, model: DiffusionPose, flat: dict, weights_path: str) -> None:
    """Raises ValueError, which names the tensors, if `flat` are not the variables of the model."""
    expected = _needed(recipe, traverse_util.flatten_dict(dict(abstract_variables(model)), sep="/"))
    wrong = [f"{name}: missing" for name in sorted(expected.keys() - flat.keys())]
    wrong += [f"{name}: unknown" for name in sorted(flat.keys() - expected.keys())]
    for name in sorted(expected.keys() & flat.keys()):
        found, wanted = flat[name], expected[name]
        if found.shape != wanted.shape:
            wrong.append(f"{name}: {found.shape} there, the model has {wanted.shape}")
        elif found.dtype != wanted.dtype:
            wrong.append(f"{name}: {found.dtype} there, the model has {wanted.dtype}")
        elif not np.isfinite(found).all():
            wrong.append(f"{name}: is not finite")
    if wrong:
        more = f"\n  and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{weights_path}: not the weights of its config:\n  " + "\n  ".join(wrong[:8]) + more)


def _downloaded(source: str) -> str:
    """The folder of Hugging Face's cache that holds the model of `hf:OWNER/REPO`."""
    field, name = f"model {source!r}", source.removeprefix(hub.HUB)
    if name.count("/") != 1 or not all(name.split("/")):
        raise ValueError(f"{field}: must be hf:OWNER/REPO, a repository with {WEIGHTS_FILE} and {METADATA_FILE}")
    _, path = (hub.download(field, name, file, "--model=FOLDER") for file in (WEIGHTS_FILE, METADATA_FILE))
    return os.path.dirname(path)


def _needed(recipe: Recipe, flat: dict) -> dict:
    """Of tensors by path, those that the recipe's model predicts with."""
    if not recipe.plain:
        return flat
    return {path: tensor for path, tensor in flat.items() if path.split("/")[1] in (BACKBONE, "coarse_head")}


def _read_metadata(path: str) -> dict:
    metadata = read_json(path, SHORT)
    for name in ("format", "sha256", "config"):
        if not isinstance(metadata, dict) or name not in metadata:
            raise ValueError(f"{path}: describes no model of dpose_jax: has no {name}")
    if metadata["format"] != FORMAT:
        raise ValueError(f"{path}: format {metadata['format']!r}, this version reads format {FORMAT}")
    trained = metadata.get("trained")
    return metadata | {"trained": trained if isinstance(trained, dict) else {}}
