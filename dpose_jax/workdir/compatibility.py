"""Stored recipes: how a workdir or model folder keeps its recipe, and which recipes fit its parameters."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from dpose_jax import __version__
from dpose_jax.models.backbones import get_backbone
from dpose_jax.pose.joint_sets import from_facts
from dpose_jax.recipe import Recipe
from dpose_jax.typed_fields import nearest, unflatten
from dpose_jax.workdir import files

CONFIG_FILE = "config.json"
# Fields that decide which parameters a model has and what they mean.
STRUCTURE = (
    *("joint_set", "input_size", "stride", "crop.warp", "codec.name", "codec.sigma", "diffusion.zeta"),
    *(f"masks.{name}" for name in ("keypoints", "skeleton", "radius", "half_width", "softness")),
    *(f"model.{name}" for name in ("backbone", "width", "head_dim", "window", "spatial_attention")),
    *(f"model.{name}" for name in ("channel_attention", "channel_scale", "decoder_channels", "decoder_blocks")),
    "model.time_embedding",
)
# Of these, what early versions did not store: it meant today's default then.
STRUCTURE_ADDED = ("model.channel_scale",)
# What a stored recipe meant before it had a field, where that is not today's default.
MEANT_BEFORE = {"model.pretrained": "none", "optim.base_batch": 0}
# Fields that later versions gave up, with the value that means "off", the only one that is still read.
REMOVED = {
    "model.residual": False,
    "diffusion.unroll_share": 0.0,
    "optim.denoiser_from": 0.0,
    "sampler.early_stop": 0.0,
}
# Each is on or off, which shows in the stored state of the optimizer.
OPTIMIZER_PARTS = ("clip_norm", "weight_decay", "ema", "freeze_backbone_steps")


def as_stored(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON values: its sections, the joint set written out as `joint_set_facts`, and our version."""
    joints = dataclasses.asdict(recipe.joints)
    flat = recipe.flatten()
    if not isinstance(recipe.joint_set, str):
        flat["joint_set"] = joints["name"]
    # Through JSON, where tuples are lists, so that it compares equal to what is read back.
    return json.loads(json.dumps(unflatten(flat) | {"joint_set_facts": joints, "version": __version__}))


def from_stored(stored: Any, file: str) -> Recipe:
    """The recipe that a workdir or model folder stores; what it lacks is read as what it meant then.

    Args:
      stored: what `as_stored` of this or an earlier version gave.
      file: to name in messages.

    Raises:
      ValueError: if it is no stored recipe, or has a field that this version does not know, or lacks one that every
        version stored and no default can replace.
    """
    if not isinstance(stored, Mapping) or not isinstance(stored.get("joint_set_facts"), Mapping):
        raise ValueError(f"{file}: holds no joint_set_facts, so it is not a stored recipe")
    flat = _flat({key: value for key, value in stored.items() if key not in ("joint_set_facts", "version")})
    for name, off in REMOVED.items():
        if flat.pop(name, off) != off:
            raise ValueError(f"{file}: {name} is on there; dpose_jax {__version__} no longer has it")
    known = set(Recipe.names())
    for name in flat:
        if name not in known:
            writer = stored.get("version", "that kept no number")
            raise ValueError(
                f"{file}: {name}: unknown to dpose_jax {__version__}, was written by version {writer}"
                f"{nearest(name, known)}"
            )
    for name in STRUCTURE:
        if name not in flat and name not in STRUCTURE_ADDED:
            raise ValueError(f"{file}: {name}: missing, though every version stores it")
    try:
        flat["joint_set"] = from_facts(stored["joint_set_facts"])
        return Recipe.read(unflatten(MEANT_BEFORE | flat))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def stored_recipe(workdir: str) -> Recipe:
    """The recipe that `workdir` was trained with.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it cannot be read; names the file and field.
    """
    path = os.path.join(workdir, CONFIG_FILE)
    if not files.exists(path):
        raise FileNotFoundError(f"{path}: missing; it says what the checkpoints beside it are")
    try:
        stored = json.loads(files.read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON, or cut short: {error}") from error
    return from_stored(stored, path)


def differences(recipe: Recipe, stored: Recipe, *, training: bool) -> list[str]:
    """`name: theirs there, ours in the config` of every field in which a recipe does not fit stored parameters.

    Args:
      training: whether they are trained on, for which the optimizer's parts and the seed, of the order of the data,
        have to be the same too.
    """
    ours, theirs = (_compared(one, training) for one in (recipe, stored))
    return [
        f"{name}: {theirs[name]} there, {ours[name]} in the config"
        for name in sorted(ours)
        if ours[name] != theirs[name]
    ]


def _compared(recipe: Recipe, training: bool) -> dict[str, Any]:
    flat = recipe.flatten()
    found = {name: flat[name] for name in STRUCTURE}
    found["model.width"] = get_backbone(recipe.model).width
    # The joints count, not where they come from: a file may move, and its content may change.
    found["joint_set"] = dataclasses.replace(recipe.joints, name="")
    if training:
        found["seed"] = recipe.seed
        found |= {f"optim.{name}": "on" if flat[f"optim.{name}"] else "off" for name in OPTIMIZER_PARTS}
    return found


def _flat(nested: Mapping, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
