"""The starts of a run, in WORKDIR/run.json: which devices, versions and data trained it."""

import json
import os
from typing import Any

import jax

from dpose_jax import __version__
from dpose_jax.workdir import files

RUN_FILE = "run.json"


def record_start(workdir: str, step: int, data: dict[str, Any] | None = None) -> None:
    """Adds this start of the run, from `step`, to WORKDIR/run.json: devices, processes, versions, and `data` (JSON)."""
    start: dict[str, Any] = {"step": step, "device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    start |= {"processes": jax.process_count(), "dpose_jax": __version__, "jax": jax.__version__}
    start |= {} if data is None else {"data": data}
    files.write_json(os.path.join(workdir, RUN_FILE), {"starts": [*_starts(workdir), start]})


def last_start(workdir: str) -> dict[str, Any]:
    """What `record_start` wrote last; empty without a run.json."""
    return ([{}] + _starts(workdir))[-1]


def training_device(workdir: str) -> str | None:
    """The devices that trained a workdir in their order, such as `cpu and 8 x TPU v4`; None without a run.json.

    A part of the run before the first record is `unknown`.
    """
    starts = _starts(workdir)
    found = ["unknown"] if starts and starts[0]["step"] else []
    found += [f"{one['devices']} x {one['device']}" if one["devices"] > 1 else one["device"] for one in starts]
    return " and ".join(dict.fromkeys(found)) or None


def _starts(workdir: str) -> list[dict]:
    """The starts in RUN_FILE, none without one; ValueError, which names it, where `record_start` did not write it."""
    path = os.path.join(workdir, RUN_FILE)
    if not files.exists(path):
        return []
    found = files.read_json(path, files.SHORT)
    starts = found.get("starts") if isinstance(found, dict) else None
    if not isinstance(starts, list) or not all(map(_is_start, starts)):
        raise ValueError(f"{path}: is damaged, no list of starts; delete it: it only says which devices trained")
    return starts


def _is_start(start: Any) -> bool:
    kinds = {"step": int, "device": str, "devices": int}
    has_all = isinstance(start, dict) and all(isinstance(start.get(name), kind) for name, kind in kinds.items())
    data = start.get("data") if has_all else None
    if not has_all or not (data is None or isinstance(data, dict) and {"persons", "sha256"} <= data.keys()):
        return False
    try:
        json.dumps(start, allow_nan=False)  # as it is written again
    except ValueError:
        return False
    return True
