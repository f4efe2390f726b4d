"""Checkpoints of train state and data position, and which recipe may use them. No other file imports orbax."""

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
from dpose_jax.workdir.training_record import training_device

FORMAT = 1  # of a checkpoint: what is stored, under which names; early versions stored no number


class Checkpoints:
    """The checkpoints of one workdir, one folder a step, each written atomically.

    All processes of a run open, save and restore together. Each writes and reads its own part of the arrays, so the
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
            handlers = {"state": ocp.PyTreeCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, None without one."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint of the highest AP, the newest of equals; None where none was evaluated."""
        step = self._manager.best_step()
        return step if step is not None and self.evaluated(step) else None

    def save(self, step: int, state: Any, data: grain.DatasetIterator) -> None:
        """Saves state and data position as checkpoint `step`, without an AP; does nothing if there is one.

        Raises:
          OSError: if this checkpoint or an unfinished earlier one cannot be written; names the folder. Older
            checkpoints stay whole.
        """
        if step in self._manager.all_steps():
            return
        position = ocp.args.JsonSave(data.get_state() | {"format": FORMAT})
        with self._writing():
            items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=position)
            self._manager.save(step, args=items, metrics={})

    def evaluated(self, step: int) -> bool:
        """Whether checkpoint `step` has an AP."""
        return _ap(self._manager.metrics(step) or {}) >= 0

    def add_ap(self, step: int, ap: float) -> None:
        """Adds the AP of its evaluation to checkpoint `step`; raises OSError as `save` does.

        A checkpoint that is the best no longer stays until the next `save`.
        """
        folder = epath.Path(self.folder) / str(step) / ocp.checkpoint_manager.METRIC_ITEM_NAME
        handler = ocp.JsonCheckpointHandler(filename=ocp.checkpoint_manager.METRIC_ITEM_NAME)
        with self._writing(), ocp.Checkpointer(handler) as writer:
            self._manager.wait_until_finished()
            writer.save(folder, args=ocp.args.JsonSave({"AP": ap}), force=True)
        self._manager.reload()

    def restore(self, like: Any, data: grain.DatasetIterator | None = None, step: int | None = None) -> Any:
        """The state of `step`, by default the newest.

        Args:
          like: a state of the same shapes and dtypes, as arrays or jax.ShapeDtypeStruct, with today's shardings.
          data: is moved to the stored position, unless None.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          ValueError: if another version of the format wrote it.
        """
        step = self.latest if step is None else step
        if step is None:
            raise FileNotFoundError(f"{self.folder}: no checkpoint; train into this workdir first")
        position = self._restore(step, data=ocp.args.JsonRestore())
        found = position.pop("format", 1)
        if found != FORMAT:
            path = os.path.join(self.folder, str(step))
            raise ValueError(f"{path}: is of checkpoint format {found}, this version of dpose_jax reads {FORMAT}")
        if data is not None:
            data.set_state(position)
        layout = ocp.checkpoint_utils.construct_restore_args(like)
        return self._restore(step, state=ocp.args.PyTreeRestore(like, layout))

    def read(self, step: int) -> dict[str, Any]:
        """The state of `step` as nested dicts and lists of numpy arrays, whatever its model.

        Of the optimizer the moving averages alone are read; every other part of `opt_state` has no array.
        """
        stored = self._manager.item_metadata(step)["state"].tree
        parts = [part if _is_average(part) else _skipped(part) for part in stored["opt_state"]]
        wanted = stored | {"opt_state": parts}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        return self._restore(step, state=ocp.args.PyTreeRestore(wanted, as_numpy))

    def _restore(self, step: int, **item: Any) -> Any:
        (found,) = self._manager.restore(step, args=ocp.args.Composite(**item)).values()
        return found

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


def _skipped(tree: Any) -> Any:
    return jax.tree.map(lambda _: ocp.PLACEHOLDER, tree)


def _is_average(part: Any) -> bool:
    return bool(part) and "updates" in part  # of optimizer.AverageState


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
      training_device: what trained it, see `training_record.training_device`.
    """

    variables: dict[str, Any]
    step: int | None
    averaged: bool
    seed: int
    training_device: str | None


def read_variables(workdir: str, *, which: str = "last", ema: bool | None = None) -> Restored:
    """The parameters of a checkpoint, whatever its model. Every process of a run reads all of them.

    Args:
      which: `last`, or `best`: the highest AP of the evaluations during training.
      ema: whether to take the moving averages where there are any; None: as the run's `eval.ema`.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: if the stored recipe cannot be read.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.latest
        if step is None:
            raise FileNotFoundError(f"{checkpoints.folder}: no checkpoint; train into this workdir first")
        if which == "best":
            step = checkpoints.best
        if step is None:
            raise FileNotFoundError(
                f"eval.checkpoint='best': no checkpoint of {workdir!r} was evaluated; train with train.evaluate_every"
            )
        recipe, state = stored_recipe(workdir), checkpoints.read(step)
    averages = [part for part in state["opt_state"] if _is_average(part)]
    averaged = bool(averages) and (recipe.eval.ema if ema is None else ema)
    source = averages[0] if averaged else state
    variables = {name: source[name] for name in ("params", "batch_stats")}
    return Restored(variables, step, averaged, recipe.seed, training_device(workdir))


def claim_workdir(recipe: Recipe, workdir: str) -> None:
    """Writes the recipe into `workdir`, after `check_workdir` for training, and raises what that does."""
    check_workdir(recipe, workdir, training=True)
    files.write_json(os.path.join(workdir, CONFIG_FILE), as_stored(recipe))


def check_workdir(recipe: Recipe, workdir: str, *, training: bool = False) -> None:
    """Checks that the checkpoints in `workdir`, if there are any, are of the model of `recipe`.

    Args:
      training: whether they are to be trained on; see `compatibility.differences`.

    Raises:
      ValueError: if they are not, naming each field that differs, or if `workdir` is empty.
      FileNotFoundError: if there are checkpoints but no recipe beside them.
      NotADirectoryError, PermissionError: if `workdir` is a file, or cannot be written.
      OSError: if it is in a bucket that cannot be reached, or must not be.
    """
    if not workdir:
        raise ValueError("--workdir='': must name a folder or bucket")
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
