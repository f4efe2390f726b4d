"""The starts of a run, in WORKDIR/run.json: which devices, versions, recipes and data trained it."""

import json
import math
import os
from typing import Any

import jax

from dpose_jax import __version__
from dpose_jax.recipe import Recipe
from dpose_jax.workdir import files
from dpose_jax.workdir.compatibility import as_stored, from_stored

RUN_FILE = "run.json"


def record_start(workdir: str, step: int, data: dict[str, Any] | None = None, recipe: Recipe | None = None) -> None:
    """Adds this start of the run, from `step`, to WORKDIR/run.json: devices, processes, versions, `data`, `recipe`.

    `data` is JSON: the number of `persons`, their `sha256`, and what else is to be compared on resuming.

    Earlier starts of which nothing is left in the checkpoint of `step` are dropped.
    """
    start: dict[str, Any] = {"step": step, "device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    start |= {"processes": jax.process_count(), "dpose_jax": __version__, "jax": jax.__version__}
    start |= {} if data is None else {"data": data}
    start |= {} if recipe is None else {"config": as_stored(recipe)}
    files.write_json(os.path.join(workdir, RUN_FILE), {"starts": [*_starts_to(workdir, step), start]})


def start_of(workdir: str, step: int) -> tuple[dict[str, Any], Recipe | None]:
    """What `record_start` wrote of the start that trained checkpoint `step`, and its recipe.

    A start that ended before it saved anything is not it. Empty and None where nothing was written.
    """
    start = ([{}] + _starts_to(workdir, step))[-1]
    return start, from_stored(start["config"], os.path.join(workdir, RUN_FILE)) if "config" in start else None


def training_device(workdir: str, step: float = math.inf) -> str | None:
    """The devices that trained checkpoint `step`, in their order, such as `cpu and 8 x TPU v4`; None without run.json.

    A part of the run before the first record is `unknown`.
    """
    starts = _starts_to(workdir, step)
    found = ["unknown"] if starts and starts[0]["step"] else []
    found += [f"{one['devices']} x {one['device']}" if one["devices"] > 1 else one["device"] for one in starts]
    return " and ".join(dict.fromkeys(found)) or None


def _starts_to(workdir: str, step: float) -> list[dict]:
    """The starts of which something is in checkpoint `step`: each goes on from what the one before it has saved."""
    found: list[dict] = []
    for start in _starts(workdir):  # of earlier versions, which dropped none
        if start["step"] < step:
            found = [one for one in found if one["step"] < start["step"]] + [start]
    return found


def _starts(workdir: str) -> list[dict]:
    """The starts in RUN_FILE, none without one; ValueError, which names it, where `record_start` did not write it."""
    path = os.path.join(workdir, RUN_FILE)
    if not files.exists(path):
        return []
    found = files.read_json(path, files.SHORT)
    starts = found.get("starts") if isinstance(found, dict) else None
    if not isinstance(starts, list) or not all(map(_is_start, starts)):
        raise ValueError(f"{path}: is damaged, no list of starts; delete it: it only says what trained the checkpoints")
    return starts


def _is_start(start: Any) -> bool:
    kinds = {"step": int, "device": str, "devices": int}
    has_all = isinstance(start, dict) and all(isinstance(start.get(name), kind) for name, kind in kinds.items())
    data = start.get("data") if has_all else None
    if not has_all or not (data is None or isinstance(data, dict) and {"persons", "sha256"} <= data.keys()):
        return False
    if "config" in start and not (isinstance(start["config"], dict) and isinstance(start.get("dpose_jax"), str)):
        return False
    try:
        json.dumps(start, allow_nan=False)  # as it is written again
    except ValueError:
        return False
    return True
