"""The initial weights of a run: random, published, or those of another run."""

import json
import os
from typing import Any

import jax
from flax import traverse_util

from dpose_jax.models.diffusion_pose import DiffusionPose
from dpose_jax.models.initialise import abstract_variables, initial_variables
from dpose_jax.models.weights import hub
from dpose_jax.models.weights.fill import BACKBONE, fill, from_own
from dpose_jax.models.weights.published import PUBLISHED, check_pose_model, fetch
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import multihost
from dpose_jax.training.optimizer import kept_parts
from dpose_jax.workdir import files, model_folder
from dpose_jax.workdir.checkpoints import read_variables
from dpose_jax.workdir.compatibility import stored_recipe
from dpose_jax.workdir.once import digest, facts_of, kept


def random_variables(recipe: Recipe, model: DiffusionPose) -> dict[str, Any]:
    """`initial_variables` of the recipe's seed, of shapes that are found out once: tracing takes most of the time."""

    def write(shapes: dict[str, Any]) -> bytes:
        flat = traverse_util.flatten_dict(shapes, sep="/")
        return json.dumps({path: (leaf.shape, leaf.dtype.name) for path, leaf in flat.items()}).encode()

    def read(content: bytes) -> dict[str, Any]:
        flat = {path: jax.ShapeDtypeStruct(*leaf) for path, leaf in json.loads(content).items()}
        return traverse_util.unflatten_dict(flat, sep="/")

    shapes, facts = None, facts_of(model.backbone)
    if facts is not None:
        name = f"shapes-{digest(repr(recipe), repr(recipe.joints), facts)}"
        shapes = kept(name, lambda: abstract_variables(model), write, read)
    return initial_variables(model, recipe.seed, shapes)


def starting_variables(recipe: Recipe, model: DiffusionPose) -> dict[str, Any]:
    """Initial `params` and `batch_stats`, with the weights that `model.pretrained` names in place; prints which.

    Raises FileNotFoundError, which names the way to get them, if the weights are missing; ValueError, which names every
    problem, if they cannot be read or do not fit; and ConnectionError if the hub cannot be reached.
    """
    variables, source, frozen = random_variables(recipe, model), recipe.model.pretrained, kept_parts(recipe)
    if source in ("none", ""):
        if frozen:
            raise ValueError(f"model.pretrained={source!r}: with optim.backbone_rate=0 it must name trained weights")
        multihost.say(f"start: random weights, seed {recipe.seed}")
        return variables
    if source != hub.CACHED and (files.is_remote(source) or os.path.isdir(source)):
        if os.path.isfile(os.path.join(source, model_folder.METADATA_FILE)):
            stored, found, metadata = model_folder.load(source)
            step = metadata["trained"].get("step")
        else:
            stored, restored = stored_recipe(source), read_variables(source)
            found, step = restored.variables, restored.step
        same = stored.joints.joints == recipe.joints.joints
        weights, name = from_own(found, same_joints=same), f"{source} (step {step})"
    else:
        own = "--config.model.pretrained=FILE"
        name = fetch(source, own) if source in PUBLISHED else hub.locate(source, recipe.model.backbone)
        if model.backbone.published is None:
            name = recipe.model.backbone
            raise ValueError(f"model.pretrained={source!r}: no published weights are known for model.backbone={name!r}")
        read = hub.read(name)
        if "coarse_head" in frozen:
            check_pose_model(name, read, recipe)
        weights = model.backbone.published(read.tensors)
    with files.placed(f"model.pretrained={source!r}"):
        variables, text = fill(variables, weights, name, frozen or (BACKBONE,))
    multihost.say(f"start: {text}")
    return variables
