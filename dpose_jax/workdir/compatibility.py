"""Stored recipes: how a workdir or model folder keeps its recipe, and which recipes fit its parameters."""

import dataclasses
import os
from typing import Any

from flax import traverse_util

from dpose_jax import __version__
from dpose_jax.models.backbones import get_backbone
from dpose_jax.pose.joint_sets import from_facts
from dpose_jax.recipe import Recipe
from dpose_jax.typed_fields import nearest, unflatten
from dpose_jax.workdir import files

CONFIG_FILE = "config.json"
# Fields that decide which parameters a model has and what they mean.
STRUCTURE = (
    "joint_set input_size stride crop.warp codec.name codec.sigma diffusion.zeta masks.keypoints masks.skeleton "
    "masks.radius masks.half_width masks.softness model.backbone model.width model.head_dim model.window "
    "model.spatial_attention model.channel_attention model.channel_scale model.decoder model.decoder_channels "
    "model.decoder_blocks model.time_embedding model.upsampling"
).split()
# Fields that decide how such a model predicts. Their defaults have changed, so a guess would be silent.
PREDICTION = (
    "crop.padding codec.refine codec.blur diffusion.timesteps diffusion.schedule sampler.steps sampler.update_rule "
    "sampler.start sampler.t_start sampler.eta sampler.refresh sampler.seed eval.flip eval.ema"
).split()
# Of all these, what the first versions did not store: it meant today's default then.
ADDED = ("model.channel_scale", "model.decoder", "model.upsampling")
# What a stored recipe meant before it had a field, where that is not today's default.
MEANT_BEFORE = {"model.pretrained": "none", "optim.base_batch": 0}
# Fields that were removed; a recipe is still read where they are off.
REMOVED = ("model.residual", "diffusion.unroll_share", "optim.denoiser_from", "sampler.early_stop")
# Each is on or off, which shows in the stored state of the optimizer.
OPTIMIZER_PARTS = (
    *("optim.clip_norm", "optim.weight_decay", "optim.ema", "optim.freeze_backbone_steps"),
    "optim.backbone_rate",
)


def as_stored(recipe: Recipe) -> dict[str, Any]:
    """A recipe as values for JSON: its sections, the joint set as `joint_set_facts`, and the version of dpose_jax."""
    name = recipe.joint_set if isinstance(recipe.joint_set, str) else recipe.joint_set.name
    facts = dataclasses.asdict(recipe.joints)
    return dataclasses.asdict(recipe) | {"joint_set": name, "joint_set_facts": facts, "version": __version__}


def from_stored(stored: Any, file: str) -> Recipe:
    """The recipe that a workdir or model folder stores: what `as_stored` of this or an earlier version gave.

    A field that was added later is read as what it meant then. Raises ValueError, which names `file`, if it is no
    stored recipe, has a field that this version does not know, or lacks one of STRUCTURE or PREDICTION.
    """
    with files.placed(file):
        if not isinstance(stored, dict) or not isinstance(stored.get("joint_set_facts"), dict):
            raise ValueError("has no section joint_set_facts, so it is not a stored recipe")
        if not isinstance(stored.get("version", ""), str):
            raise ValueError(f"version: must be text, got {stored['version']!r}")
        sections = {name: value for name, value in stored.items() if name not in ("joint_set_facts", "version")}
        flat, known = traverse_util.flatten_dict(sections, sep="."), Recipe.names()
        for name in REMOVED:
            if flat.pop(name, False):
                raise ValueError(f"{name} is on there; dpose_jax {__version__} no longer has it")
        for name in flat:
            if name not in known:
                writer, hint = stored.get("version", "0.1.0"), nearest(name, known)
                raise ValueError(f"{name}: unknown to dpose_jax {__version__}; version {writer} wrote it{hint}")
        nested = unflatten(MEANT_BEFORE | flat)
        for name in (*STRUCTURE, *PREDICTION):
            # A section that is no section is reported by `Recipe.read`, by its own name.
            section = nested.get(name.partition(".")[0], {})
            if name not in flat and name not in ADDED and isinstance(section, dict):
                raise ValueError(f"{name}: missing, though every version stores it")
        with files.placed("joint_set_facts"):
            joints = from_facts(stored["joint_set_facts"])
        return Recipe.read(nested | {"joint_set": joints})


def stored_recipe(workdir: str) -> Recipe:
    """The recipe that `workdir` was trained with.

    Raises FileNotFoundError if there is none, and ValueError if `workdir` is empty or the recipe cannot be read; it
    names file and field.
    """
    if not workdir:
        raise ValueError("--workdir='': must name a folder or bucket")
    path = os.path.join(workdir, CONFIG_FILE)
    if not files.exists(path):
        raise FileNotFoundError(f"{path}: missing; it says what the checkpoints beside it are")
    return from_stored(files.read_json(path, files.SHORT), path)


def differences(recipe: Recipe, stored: Recipe, *, training: bool) -> list[str]:
    """Where a recipe does not fit stored parameters, as lines `name: stored value there, own value in the config`.

    For `training` the parts of the optimizer and the seed, which orders the data, have to be the same too.
    """
    own, theirs = (_compared(one, training) for one in (recipe, stored))
    different = [name for name in sorted(own) if own[name] != theirs[name]]
    for one, values in ((recipe, own), (stored, theirs)):
        values["joint_set"] = f"{one.joints.name} ({one.joints.num_joints} joints)"
    return [f"{name}: {theirs[name]} there, {own[name]} in the config" for name in different]


def _compared(recipe: Recipe, training: bool) -> dict[str, Any]:
    flat = recipe.flatten()
    found = {name: flat[name] for name in STRUCTURE} | {"model.width": get_backbone(recipe.model).width}
    # The joints count, not where they come from: a file may move, and its content may change.
    found["joint_set"] = dataclasses.replace(recipe.joints, name="")
    if training:
        found |= {"seed": recipe.seed} | {name: "on" if flat[name] else "off" for name in OPTIMIZER_PARTS}
    return found
