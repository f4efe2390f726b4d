"""What a run starts from: random weights, published ones, or those of another run."""

import os

from dpose_jax.models.diffusion_pose import DiffusionPose
from dpose_jax.models.initialise import initial_variables
from dpose_jax.models.weights import hub
from dpose_jax.models.weights.fill import fill, from_own
from dpose_jax.pose.joint_sets import get_joint_set
from dpose_jax.runtime import multihost
from dpose_jax.workdir import files, model_folder
from dpose_jax.workdir.checkpoints import read_variables
from dpose_jax.workdir.compatibility import stored_recipe

RANDOM = ("none", "")


def starting_variables(config, model: DiffusionPose):
    """Initial `params` and `batch_stats`, with what `config.model.pretrained` names in place; prints which.

    Raises:
      FileNotFoundError: if it is not there; says where to get it.
      ValueError: if it cannot be read or does not fit; names all that is wrong.
      ConnectionError: if the hub was asked for it and does not give it.
    """
    variables, source = initial_variables(model, config.seed), config.model.pretrained
    if source in RANDOM:
        multihost.say(f"start: random weights, seed {config.seed}")
        return variables
    if source != hub.CACHED and (files.is_remote(source) or os.path.isdir(source)):
        weights, name = _of_folder(source, config)
    else:
        name = hub.locate(source, config.model.backbone)
        if model.backbone.published is None:
            name = config.model.backbone
            raise ValueError(f"model.pretrained={source!r}: no published weights are known for model.backbone={name!r}")
        weights = model.backbone.published(hub.read(name))
    try:
        variables, text = fill(variables, weights, name)
    except ValueError as error:
        raise ValueError(f"model.pretrained={source!r}: {error}") from error
    multihost.say(f"start: {text}")
    return variables


def _of_folder(folder: str, config):
    """A model folder's weights, or those of a workdir's newest checkpoint, and what to call them."""
    if os.path.isfile(os.path.join(folder, model_folder.FACTS_FILE)):
        stored, variables, facts = model_folder.load(folder)
        joints, step = get_joint_set(stored.joint_set).joints, facts["trained"].get("step")
    else:
        joints, restored = stored_recipe(folder).joints.joints, read_variables(folder)
        variables, step = restored.variables, restored.step
    same = joints == get_joint_set(config.joint_set).joints
    return from_own(variables, same_joints=same), f"{folder} (step {step})"
