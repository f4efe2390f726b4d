"""Checkpoints of state and data position, and the recipe that a workdir belongs to. The one file that knows orbax."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from dpose_jax.recipe import Recipe
from dpose_jax.workdir import files
from dpose_jax.workdir.compatibility import CONFIG_FILE, as_stored, differences, stored_recipe

FORMAT = 1  # of a checkpoint: what is stored, under which names; versions that stored none wrote 1


class Checkpoints:
    """The checkpoints of one workdir, one folder a step; saving is atomic (written beside, then renamed).

    All processes of a run open, save and restore together; each writes and reads its own part of the arrays, so the
    workdir of several hosts has to be a folder that they share, or a bucket.
    """

    def __init__(self, workdir: str, keep: int = 1, *, read_only: bool = False):
        """Opens `workdir`/checkpoints; the `keep` newest stay, and the one of the highest AP.

        Raises:
          FileNotFoundError: if it is to be read only and does not exist.
          OSError: if it is in a bucket that cannot be reached, or must not be.
        """
        # XLA:CPU hands orbax the live buffers, which a donated step would overwrite under an async save.
        asynchronous = jax.default_backend() != "cpu"
        self.folder = os.path.join(workdir if files.is_remote(workdir) else os.path.abspath(workdir), "checkpoints")
        if read_only and not files.exists(self.folder):
            raise FileNotFoundError(f"{self.folder}: no checkpoint; train into this workdir first")
        newest = ocp.checkpoint_managers.LatestN(n=None if read_only else keep)
        best = ocp.checkpoint_managers.BestN(get_metric_fn=_ap, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=_ap,
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy([newest, best]),
            enable_async_checkpointing=asynchronous,
            read_only=read_only,
        )
        with files.named_errors(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, None without one."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint of the highest AP, the newest of equals; None where none was evaluated."""
        step = self._manager.best_step()
        return step if step is not None and self.evaluated(step) else None

    def save(self, step: int, state: Any, data: grain.DatasetIterator, ap: float | None = None) -> None:
        """Saves state and data position as checkpoint `step`, with its AP if known; does nothing if there is one.

        Raises:
          OSError: if it, or the one before it that was still being written, cannot be written; names the folder. What
            was saved earlier is whole.
        """
        if step in self._manager.all_steps():
            return
        position = ocp.args.JsonSave(data.get_state() | {"format": FORMAT})
        with self._writing():
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=position)
            self._manager.save(step, args=items, metrics={} if ap is None else {"AP": ap})

    def evaluated(self, step: int) -> bool:
        """Whether checkpoint `step` has an AP."""
        return _ap(self._manager.metrics(step) or {}) >= 0

    def add_ap(self, step: int, ap: float) -> None:
        """Gives checkpoint `step`, whose evaluation was broken off, its AP; raises OSError as `save` does."""
        folder = epath.Path(self.folder) / str(step) / ocp.checkpoint_manager.METRIC_ITEM_NAME
        handler = ocp.JsonCheckpointHandler(filename=ocp.checkpoint_manager.METRIC_ITEM_NAME)
        with self._writing(), ocp.Checkpointer(handler) as writer:
            writer.save(folder, args=ocp.args.JsonSave({"AP": ap}), force=True)
        self._manager.reload()

    def restore(self, abstract: Any, data: grain.DatasetIterator | None = None, step: int | None = None) -> Any:
        """The state of `step`, by default the newest, laid out as `abstract` (shapes, dtypes and today's shardings).

        Args:
          data: is moved to the position stored beside the state, unless None.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          ValueError: if another version of the format wrote it.
        """
        step = self.latest if step is None else step
        if step is None:
            raise FileNotFoundError(f"{self.folder}: no checkpoint; train into this workdir first")
        position = self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
        found = position.pop("format", 1)
        if found != FORMAT:
            path = os.path.join(self.folder, str(step))
            raise ValueError(f"{path}: is of checkpoint format {found}, this version of dpose_jax reads {FORMAT}")
        if data is not None:
            data.set_state(position)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=items)["state"]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything is on disk; raises OSError as `save` does."""
        with self._writing():
            self._manager.wait_until_finished()
        self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # orbax, tensorstore and a bucket's client each raise types of their own for a full disk or a refusal.
            raise OSError(f"{self.folder}: cannot write a checkpoint: {error}") from error


def _ap(metrics: dict[str, float]) -> float:
    return metrics.get("AP", -1.0)


def holds_checkpoint(workdir: str) -> bool:
    """Whether there is a whole checkpoint; raises OSError about a bucket that cannot be reached, or must not be."""
    with files.named_errors(workdir):
        folder = epath.Path(workdir) / "checkpoints"
        # Of orbax, because in a bucket, where nothing is renamed, half a checkpoint has its final name already.
        return folder.exists() and ocp.utils.any_checkpoint_step(folder) is not None


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint predicts with.

    Attributes:
      variables: `params` and `batch_stats`, numpy arrays.
      step: of the checkpoint; averaged: whether they are its moving averages; seed: of the run.
    """

    variables: dict[str, Any]
    step: int
    averaged: bool
    seed: int


def read_variables(workdir: str, *, which: str = "last", ema: bool | None = None) -> Restored:
    """The parameters of a checkpoint, whatever its model; nothing of its optimizer is read but the moving averages.

    Args:
      which: `last`, or `best`: the highest AP of the evaluations during training.
      ema: whether to take the moving averages where there are any; None: as the run's `eval.ema`.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
    """
    recipe = stored_recipe(workdir)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.best if which == "best" else checkpoints.latest
    if step is None and which == "best" and checkpoints.latest is not None:
        raise FileNotFoundError(
            f"eval.checkpoint='best': no checkpoint of {workdir!r} was evaluated; train with train.evaluate_every"
        )
    if step is None:
        raise FileNotFoundError(f"{checkpoints.folder}: no checkpoint; train into this workdir first")
    path = os.path.join(checkpoints.folder, str(step), "state")
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    state = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    averages = [part for part in state["opt_state"] if part and "updates" in part]
    averaged = bool(averages) and (recipe.eval.ema if ema is None else ema)
    source = averages[0] if averaged else state
    return Restored({name: source[name] for name in ("params", "batch_stats")}, step, averaged, recipe.seed)


def claim_workdir(recipe: Recipe, workdir: str) -> None:
    """Writes the recipe into `workdir`, after `check_workdir` for training, and raises what that does."""
    check_workdir(recipe, workdir, training=True)
    files.write_json(os.path.join(workdir, CONFIG_FILE), as_stored(recipe))


def check_workdir(recipe: Recipe, workdir: str, *, training: bool = False) -> None:
    """Checks that the checkpoints in `workdir`, if there are any, are of the model of `recipe`.

    Args:
      training: whether they are to be trained on, for which the parts of the optimizer and the seed, of the order of
        the data, have to be the same too.

    Raises:
      ValueError: if they are not; names each field that differs.
      FileNotFoundError: if there are checkpoints but no recipe beside them.
      NotADirectoryError, PermissionError: if `workdir` is a file, or cannot be written.
      OSError: if it is in a bucket that cannot be reached, or must not be.
    """
    if not files.is_remote(workdir):
        _check_folder(workdir)
    if not holds_checkpoint(workdir):
        return
    different = differences(recipe, stored_recipe(workdir), training=training)
    if different:
        what = "another model, optimizer or seed" if training else "another model"
        raise ValueError("\n  ".join([f"workdir {workdir!r} holds the checkpoint of {what}:", *different]))


def _check_folder(workdir: str) -> None:
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise NotADirectoryError(f"workdir {workdir!r}: is a file")
    parent = os.path.abspath(workdir)
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"workdir {workdir!r}: {parent} is not writable")
