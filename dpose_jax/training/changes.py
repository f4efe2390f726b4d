"""What a run says about itself: what changed since its checkpoint, and what to do after its end."""

import hashlib
import os
from typing import Any

import numpy as np

from dpose_jax import __version__
from dpose_jax.data.mixed import MixedSource
from dpose_jax.data.sample import Source, generated
from dpose_jax.recipe import Recipe
from dpose_jax.training.optimizer import kept_parts, learning_rate
from dpose_jax.workdir import files
from dpose_jax.workdir.compatibility import CONFIG_FILE, stored_recipe
from dpose_jax.workdir.starts import start_of

# Fields that a changed run may have without another result.
NO_RESULT = ("data.root", "data.workers", "joint_set", "profile_steps", "train.log_every", "train.fsdp")


def fingerprint(source: Source) -> str:
    """SHA-256 of a source's persons, in their order: file names without folder, ids, boxes and joints; no pixel.

    Generated people are a function of the recipe: of them 16 are looked at, in case that the generator changed.
    """
    found = hashlib.sha256()
    if isinstance(source, MixedSource):
        found.update(" ".join(map(fingerprint, source.sources)).encode())
        return found.hexdigest()
    for index in range(0, len(source), -(-len(source) // 16) if generated(source) else 1):
        person = source[index]
        found.update(f"{person.annotation_id} {person.image_id} {os.path.basename(person.file)}".encode())
        found.update(np.asarray(person.bbox, np.float32).tobytes())
        found.update(np.asarray(person.keypoints, np.float32).tobytes())
    return found.hexdigest()


def held(recipe: Recipe) -> list[str]:
    """What a run does not train, or only later, in one line; none if it trains everything at one rate."""
    rate, later, kept = recipe.optim.backbone_rate, recipe.optim.freeze_backbone_steps, kept_parts(recipe)
    both = "optim.backbone_rate=0 with loss.coarse=0 keeps both"
    if len(kept) == 2:
        return ["HRNet and the coarse branch stay as they are; the denoiser alone is trained"]
    if kept:
        return ["HRNet stays as it is; the coarse branch is trained, loss.coarse=0 keeps it too"]
    if later:
        return [f"HRNet stays as it is to step {later}; the coarse branch is trained from the first step, {both}"]
    return [f"HRNet learns at {rate:g} of the rate"] if rate < 1 else []


def changes(recipe: Recipe, workdir: str, start: int, data: dict[str, Any]) -> list[str]:
    """What changed since the checkpoint of step `start` was trained, one line each: fields, rate, data, version.

    `data` is what `record_start` gets: the number of persons and their `fingerprint`, and where the run evaluates that
    of the evaluated ones.
    """
    record, before = start_of(workdir, start)
    if before is None:  # of a version that kept the recipe of the last start alone
        before, version = stored_recipe(workdir), files.read_json(os.path.join(workdir, CONFIG_FILE)).get("version")
    else:
        version = record["dpose_jax"]
    now, version = recipe, version or "0.1.0"
    old, new = before.flatten(), now.flatten()
    lines = [
        f"{name} goes from {old[name]!r} to {new[name]!r}"
        for name in new
        if old[name] != new[name] and name not in NO_RESULT and not name.startswith(("sampler.", "eval."))
    ]
    rates = [float(learning_rate(one.optim, one.train)(start)) for one in (before, now)]
    if rates[0] != rates[1]:
        lines.append(f"the learning rate at step {start} goes from {rates[0]:.3g} to {rates[1]:.3g}")
    known = record.get("data") or data
    if known["sha256"] != data["sha256"] or known["persons"] != data["persons"]:
        counts = f"{known['persons']} persons before, {data['persons']} now"
        lines.append(f"the training data differ: {counts if known['persons'] != data['persons'] else 'other content'}")
    if known.get("evaluated") and data.get("evaluated") and known["evaluated"] != data["evaluated"]:
        lines.append("the evaluated data differ: earlier APs, which chose the best checkpoint, are of another set")
    if version != __version__:
        lines.append(f"dpose_jax goes from version {version} to {__version__}")
    return lines
