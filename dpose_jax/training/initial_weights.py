"""The initial weights of a run: random, published, or those of another run."""

import os
from typing import Any

from dpose_jax.models.diffusion_pose import DiffusionPose
from dpose_jax.models.initialise import initial_variables
from dpose_jax.models.weights import hub
from dpose_jax.models.weights.fill import BACKBONE, Weights, fill, from_own
from dpose_jax.models.weights.published import PUBLISHED, check_pose_model, fetch
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import multihost
from dpose_jax.training.optimizer import kept_parts
from dpose_jax.workdir import files, model_folder
from dpose_jax.workdir.checkpoints import read_variables
from dpose_jax.workdir.compatibility import stored_recipe

RANDOM = ("none", "")


def starting_variables(recipe: Recipe, model: DiffusionPose) -> dict[str, Any]:
    """Initial `params` and `batch_stats`, with the weights that `model.pretrained` names in place; prints which.

    Raises:
      FileNotFoundError: if they are missing; names the way to get them.
      ValueError: if they cannot be read or do not fit; names every problem.
      ConnectionError: if the hub cannot be reached.
    """
    variables, source, kept = initial_variables(model, recipe.seed), recipe.model.pretrained, kept_parts(recipe)
    if kept and source in RANDOM:
        raise ValueError(
            f"model.pretrained={source!r}: with optim.backbone_rate=0 the weights have to come from a file"
        )
    if source in RANDOM:
        multihost.say(f"start: random weights, seed {recipe.seed}")
        return variables
    if source != hub.CACHED and (files.is_remote(source) or os.path.isdir(source)):
        weights, name = _of_folder(source, recipe)
    else:
        name = fetch(source) if source in PUBLISHED else hub.locate(source, recipe.model.backbone)
        if model.backbone.published is None:
            name = recipe.model.backbone
            raise ValueError(f"model.pretrained={source!r}: no published weights are known for model.backbone={name!r}")
        read = hub.read(name)
        if "coarse_head" in kept:
            check_pose_model(name, read, recipe)
        weights = model.backbone.published(read.tensors)
    try:
        variables, text = fill(variables, weights, name, kept or (BACKBONE,))
    except ValueError as error:
        raise ValueError(f"model.pretrained={source!r}: {error}") from error
    multihost.say(f"start: {text}")
    return variables


def _of_folder(folder: str, recipe: Recipe) -> tuple[Weights, str]:
    """The weights of a model folder, or of a workdir's newest checkpoint, and a name for messages."""
    if os.path.isfile(os.path.join(folder, model_folder.METADATA_FILE)):
        stored, variables, metadata = model_folder.load(folder)
        step = metadata["trained"].get("step")
    else:
        stored, restored = stored_recipe(folder), read_variables(folder)
        variables, step = restored.variables, restored.step
    same = stored.joints.joints == recipe.joints.joints
    return from_own(variables, same_joints=same), f"{folder} (step {step})"
