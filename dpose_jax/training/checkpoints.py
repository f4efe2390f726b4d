"""Checkpoints of state and data position, and the config that a workdir belongs to. The one file that knows orbax."""

import json
import os

import grain
import jax
import orbax.checkpoint as ocp

from dpose_jax.evaluation.coco import write_json
from dpose_jax.training.state import TrainState

CONFIG_FILE = "config.json"
# Fields that decide which parameters there are and what they mean; model.dtype and the ablation of the gradient do not.
STRUCTURE = ("joint_set", "input_size", "stride", "model")
FREE_MODEL_FIELDS = ("dtype", "detach_coarse")
OPTIMIZER_PARTS = ("clip_norm", "weight_decay", "ema")  # each is there or not, which shows in the stored state


class Checkpoints:
    """The checkpoints of one workdir, one folder a step; saving is atomic (written beside, then renamed)."""

    def __init__(self, workdir: str, keep: int = 1):
        """Opens `workdir`/checkpoints; `keep` is how many of the newest stay."""
        # XLA:CPU hands orbax the live buffers, which a donated step would overwrite under an async save.
        asynchronous = jax.default_backend() != "cpu"
        self.folder = os.path.join(os.path.abspath(workdir), "checkpoints")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=asynchronous)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: grain.DatasetIterator) -> None:
        """Saves state and data position as checkpoint `step`; does nothing if there is one."""
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(data))
        self._manager.save(step, args=args)

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
            items["data"] = grain.checkpoint.CheckpointRestore(data)
        return self._manager.restore(self.latest, args=ocp.args.Composite(**items))["state"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def claim_workdir(config, workdir: str) -> None:
    """Writes the config into `workdir`, or checks that the one there describes the same model and optimizer.

    Raises:
      ValueError: if the workdir holds another model; names each field that differs.
    """
    check_workdir(config, workdir)
    os.makedirs(workdir, exist_ok=True)
    write_json(os.path.join(workdir, CONFIG_FILE), json.loads(config.to_json_best_effort()))


def check_workdir(config, workdir: str) -> None:
    """Raises ValueError if `workdir` holds a model or optimizer of another structure than `config`'s."""
    path = os.path.join(workdir, CONFIG_FILE)
    if not os.path.exists(path):
        return
    with open(path) as file:
        stored = json.load(file)
    ours, theirs = _structure(json.loads(config.to_json_best_effort())), _structure(stored)
    different = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    if different:
        lines = [f"  {name}: {theirs.get(name)} there, {ours.get(name)} in the config" for name in different]
        head = f"workdir {workdir!r} holds the checkpoint of another model or optimizer:"
        raise ValueError("\n".join([head, *lines]))


def _structure(config: dict) -> dict:
    fields = {name: config.get(name) for name in STRUCTURE if name != "model"}
    model = {f"model.{name}": value for name, value in config.get("model", {}).items() if name not in FREE_MODEL_FIELDS}
    optimizer = {f"optim.{name}": "on" if config.get("optim", {}).get(name) else "off" for name in OPTIMIZER_PARTS}
    return fields | model | optimizer
