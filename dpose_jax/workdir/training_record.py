"""run.json: which devices and versions trained a workdir."""

import os

import jax

from dpose_jax import __version__
from dpose_jax.workdir import files

RUN_FILE = "run.json"


def record_start(workdir: str, step: int) -> None:
    """Adds this start of the run, from `step`, to WORKDIR/run.json: its devices, processes and versions."""
    start = {"step": step, "device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    start |= {"processes": jax.process_count(), "dpose_jax": __version__, "jax": jax.__version__}
    files.write_json(os.path.join(workdir, RUN_FILE), {"starts": [*_starts(workdir), start]})


def training_device(workdir: str) -> str | None:
    """The devices that trained a workdir in their order, such as `cpu and 8 x TPU v4`; None without a run.json.

    A part of the run before the first record is `unknown`.
    """
    starts = _starts(workdir)
    found = ["unknown"] if starts and starts[0]["step"] else []
    found += [f"{one['devices']} x {one['device']}" if one["devices"] > 1 else one["device"] for one in starts]
    return " and ".join(dict.fromkeys(found)) or None


def _starts(workdir: str) -> list[dict]:
    path = os.path.join(workdir, RUN_FILE)
    return files.read_json(path)["starts"] if files.exists(path) else []
