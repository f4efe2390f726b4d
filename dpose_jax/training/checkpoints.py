"""Checkpoints of state and data position, and the config that a workdir belongs to. The one file that knows orbax."""

import contextlib
import dataclasses
import json
import os
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from dpose_jax.files import write_json
from dpose_jax.models.hrnet import PRESETS
from dpose_jax.skeletons import get_joint_set
from dpose_jax.training.state import TrainState

CONFIG_FILE = "config.json"
# Fields that decide which parameters there are and what they mean; FREE_MODEL_FIELDS do not.
STRUCTURE = ("joint_set", "input_size", "stride", "codec.name", "crop.warp", "diffusion.zeta")
FREE_MODEL_FIELDS = ("dtype", "detach_coarse", "batch_norm", "remat", "pretrained")
# Each is there or not, which shows in the stored state.
OPTIMIZER_PARTS = ("clip_norm", "weight_decay", "ema", "freeze_backbone_steps")


class Checkpoints:
    """The checkpoints of one workdir, one folder a step; saving is atomic (written beside, then renamed)."""

    def __init__(self, workdir: str, keep: int = 1, *, read_only: bool = False):
        """Opens `workdir`/checkpoints; `keep` is how many of the newest stay.

        Raises:
          FileNotFoundError: if it is to be read only and does not exist.
        """
        # XLA:CPU hands orbax the live buffers, which a donated step would overwrite under an async save.
        asynchronous = jax.default_backend() != "cpu"
        self.folder = os.path.join(os.path.abspath(workdir), "checkpoints")
        if read_only and not os.path.isdir(self.folder):
            raise FileNotFoundError(f"{self.folder}: no checkpoint; train into this workdir first")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep, enable_async_checkpointing=asynchronous, read_only=read_only
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: grain.DatasetIterator) -> None:
        """Saves state and data position as checkpoint `step`; does nothing if there is one."""
        if step in self._manager.all_steps():
            return
        position = ocp.args.JsonSave(data.get_state())
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=position))

    def restore(self, abstract: TrainState, data: grain.DatasetIterator | None = None) -> TrainState:
        """The newest state, laid out as `abstract` (shapes, dtypes and shardings of today's mesh).

        Args:
          data: is moved to the position stored beside the state, unless None.

        Raises:
          FileNotFoundError: if there is no checkpoint.
        """
        if self.latest is None:
            raise FileNotFoundError(f"{self.folder}: no checkpoint; train into this workdir first")
        items = {"state": ocp.args.StandardRestore(abstract)}
        if data is not None:
            items["data"] = ocp.args.JsonRestore()
        restored = self._manager.restore(self.latest, args=ocp.args.Composite(**items))
        if data is not None:
            data.set_state(restored["data"])
        return restored["state"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def holds_checkpoint(workdir: str) -> bool:
    """Whether a run has saved into `workdir`."""
    folder = os.path.join(workdir, "checkpoints")
    return os.path.isdir(folder) and any(name.isdigit() for name in os.listdir(folder))


def read_variables(workdir: str) -> tuple[dict[str, Any], int]:
    """`params` and `batch_stats` of the newest checkpoint as numpy arrays, whatever its model, and its step.

    The parameters are their moving average where there is one, as in evaluation.

    Raises:
      FileNotFoundError: if there is no checkpoint.
    """
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = checkpoints.latest
    if step is None:
        raise FileNotFoundError(f"{checkpoints.folder}: no checkpoint; train into this workdir first")
    path = os.path.join(checkpoints.folder, str(step), "state")
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    state = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    averages = [part["average"] for part in state["opt_state"] if part and "average" in part]
    return {"params": averages[0] if averages else state["params"], "batch_stats": state["batch_stats"]}, step


def claim_workdir(config, workdir: str) -> None:
    """Writes the config into `workdir`, after `check_workdir`."""
    check_workdir(config, workdir)
    os.makedirs(workdir, exist_ok=True)
    write_json(os.path.join(workdir, CONFIG_FILE), _as_stored(config))


def check_workdir(config, workdir: str) -> None:
    """Checks that the checkpoints in `workdir`, if there are any, are of the model and optimizer of `config`.

    Raises:
      ValueError: if they are not; names each field that differs.
      FileNotFoundError: if there are checkpoints but no config beside them.
      NotADirectoryError, PermissionError: if `workdir` is a file, or cannot be written.
    """
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise NotADirectoryError(f"workdir {workdir!r}: is a file")
    parent = os.path.abspath(workdir)
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"workdir {workdir!r}: {parent} is not writable")
    if not holds_checkpoint(workdir):
        return
    ours, theirs = _structure(_as_stored(config)), _structure(stored_config(workdir))
    different = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    if different:
        lines = [f"  {name}: {theirs.get(name)} there, {ours.get(name)} in the config" for name in different]
        head = f"workdir {workdir!r} holds the checkpoint of another model or optimizer:"
        raise ValueError("\n".join([head, *lines]))


def stored_config(workdir: str) -> dict:
    """The config that `workdir` was trained with, as JSON, with its joint set written out under `joint_set_facts`.

    Raises:
      FileNotFoundError: if there is none.
    """
    path = os.path.join(workdir, CONFIG_FILE)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: missing; it says what the checkpoints beside it are")
    with open(path) as file:
        return json.load(file)


def _as_stored(config) -> dict:
    facts = dataclasses.asdict(get_joint_set(config.joint_set))
    # Through JSON, where tuples are lists, so that it compares equal to what is read back.
    return json.loads(json.dumps(json.loads(config.to_json_best_effort()) | {"joint_set_facts": facts}))


def _structure(config: dict) -> dict:
    fields: dict[str, Any] = {}
    for name in STRUCTURE:
        value: Any = config
        for part in name.split("."):
            value = value.get(part)
        fields[name] = value
    # The facts count, not where they come from: a file may move, and its content may change.
    fields["joint_set"] = {key: value for key, value in config["joint_set_facts"].items() if key != "name"}
    model = {f"model.{name}": value for name, value in config["model"].items() if name not in FREE_MODEL_FIELDS}
    model["model.width"] = model["model.width"] or PRESETS[model["model.backbone"]].width
    optimizer = {f"optim.{name}": "on" if config["optim"].get(name) else "off" for name in OPTIMIZER_PARTS}
    return fields | model | optimizer
