"""run.json: which devices and versions trained a workdir."""

import os

import jax

from dpose_jax import __version__
from dpose_jax.workdir import files

RUN_FILE = "run.json"


def record_start(workdir: str, step: int) -> None:
    """Adds this start of the run, from `step`, to WORKDIR/run.json: its devices, processes and versions."""
    start = {
        "step": step,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "dpose_jax": __version__,
        "jax": jax.__version__,
    }
    files.write_json(os.path.join(workdir, RUN_FILE), {"starts": [*_starts(workdir), start]})


def training_device(workdir: str) -> str | None:
    """The devices that trained a workdir, such as `8 x TPU v4`, in their order; None if nothing recorded them."""
    found = [f"{start['devices']} x {start['device']}" for start in _starts(workdir)]
    return ", then ".join(dict.fromkeys(found)) or None


def _starts(workdir: str) -> list[dict]:
    path = os.path.join(workdir, RUN_FILE)
    return files.read_json(path)["starts"] if files.exists(path) else []
