"""What a run leaves in its workdir: checkpoints and its recipe. No other file imports orbax."""

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from dpose_jax.recipe import Recipe
from dpose_jax.runtime import flat, multihost
from dpose_jax.workdir import checksums, files
from dpose_jax.workdir.compatibility import CONFIG_FILE, as_stored, differences, stored_recipe
from dpose_jax.workdir.starts import training_device

FORMAT = 1  # of a checkpoint: what is stored, under which names; early versions stored no number


def _with_checksums(handler: Any) -> Any:
    """The handler, which adds checksums once all hosts have written, before the checkpoint gets its name."""
    finalize = handler.finalize

    def finalize_with_checksums(directory: epath.Path) -> None:
        finalize(directory)
        checksums.add_checksums(directory, int(re.split(r"\D", directory.parent.name)[0]))

    # A subclass would need argument classes of its own, which orbax looks up by the handler's class.
    handler.finalize = finalize_with_checksums
    return handler


class _Manager(ocp.CheckpointManager):
    """Takes an AP that cannot be read for none; orbax's own ends with a traceback."""

    def metrics(self, step: int) -> dict[str, float] | None:
        ap = _stored_ap(os.fspath(self.directory), step)
        return None if ap is None else {"AP": ap}


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of one workdir, one folder a step, each written atomically and with checksums.

    All processes of a run open, save and restore together. Each writes and reads its own part of the arrays, so the
    workdir of several hosts has to be a folder that they share, or a bucket. What cannot be written is an OSError that
    names the folder; older checkpoints stay whole. Leaving the context waits until everything is on disk.
    """

    def __init__(self, workdir: str, keep: int = 1, *, read_only: bool = False):
        """Opens `workdir`/checkpoints; the `keep` newest stay, and the one of the highest AP.

        Prints each checkpoint that is newer than the newest whole one, and why it is passed over; unless `read_only`,
        it is moved to `workdir`/damaged. Raises ValueError if no checkpoint is whole, or a damaged one lies in a
        bucket, and OSError if the bucket cannot be reached, or must not be.
        """
        self.folder = os.path.join(workdir if files.is_remote(workdir) else os.path.abspath(workdir), "checkpoints")
        with files.named_errors(self.folder):
            self._damaged = multihost.from_first(functools.partial(self._pass_over, read_only))
        newest = ocp.checkpoint_managers.LatestN(n=None if read_only else keep)
        best = ocp.checkpoint_managers.BestN(get_metric_fn=_ap, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=_ap,
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy([newest, best]),
            # XLA:CPU hands orbax the live buffers, which a donated step would overwrite under an async save.
            enable_async_checkpointing=jax.default_backend() != "cpu",
            read_only=read_only,
            # What it would set itself, and warn.
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
        )
        with files.named_errors(self.folder):
            handlers = {
                "state": _with_checksums(ocp.PyTreeCheckpointHandler()),
                "data": _with_checksums(ocp.JsonCheckpointHandler()),
            }
            self._manager = _Manager(self.folder, options=options, item_handlers=handlers)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # orbax, tensorstore and a bucket's client each raise types of their own for a full disk or a refusal.
        except Exception as error:
            text = " ".join(str(error).split())
            text = text if len(text) < 300 else f"{text[:60]} … {text[-160:]}"  # the system's reason comes last
            raise OSError(f"{self.folder}: cannot write a checkpoint: {text}; older ones stay whole") from error

    def _pass_over(self, read_only: bool) -> list[int]:
        """The damaged checkpoints that are newer than the newest whole one, after printing each.

        Unless `read_only`, it deletes what a kill left of a save; orbax would by a thread that nothing waits for.
        """
        if not (read_only or files.is_remote(self.folder)):
            for path in epath.Path(self.folder).glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
        steps, damaged = _steps(self.folder), dict[int, str]()
        for step in steps:
            reason = self._damage(step)
            if reason is None:
                break
            damaged[step] = f"{os.path.join(self.folder, str(step))}: {reason}"
        if damaged and len(damaged) == len(steps):
            raise ValueError("\n  ".join([f"{self.folder}: no checkpoint is whole:", *damaged.values()]))
        for step, text in damaged.items():
            moved = "" if read_only else f"; moved to {self._set_aside(step, text)}"
            print(f"passed over: {text}{moved}; step {steps[len(damaged)]} is taken")
        return [] if not read_only else list(damaged)

    def _damage(self, step: int) -> str | None:
        """What is wrong with checkpoint `step`, None if it is whole; of one without checksums all is read once."""
        folder = epath.Path(self.folder) / str(step)
        reason = checksums.damage(folder / "state") or checksums.damage(folder / "data")
        if reason:
            return reason
        try:
            if (own := folder / "_CHECKPOINT_METADATA").exists():  # orbax's, which prints what it cannot read
                checksums.read_json_object(own)
            position = checksums.read_json_object(folder / "data" / "metadata")
            if not isinstance(position.get("examples"), int):
                raise ValueError("data/metadata is damaged: examples is no integer")
        except ValueError as error:
            return str(error)
        checked = [(folder / name / checksums.CHECKSUMS_FILE).exists() for name in ("state", "data")]
        if all(checked):
            return None
        if any(checked) or "step" in position:
            return f"{checksums.CHECKSUMS_FILE} is missing"
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                stored = reader.metadata(folder / "state").item_metadata.tree
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
                reader.restore(folder / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # orbax and tensorstore have types of their own
            return f"state/ cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
        return None

    def _set_aside(self, step: int, text: str) -> str:
        if files.is_remote(self.folder):
            raise ValueError(f"{text}; delete this folder to go on from the checkpoint before")
        place = os.path.join(os.path.dirname(self.folder), "damaged", str(step))
        while os.path.exists(place):
            place += "_"
        os.renames(os.path.join(self.folder, str(step)), place)
        return place

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, None without one."""
        return max(self._whole(), default=None)

    def _whole(self) -> set[int]:
        return set(self._manager.all_steps()) & set(_steps(self.folder)) - set(self._damaged)

    @property
    def best(self) -> int | None:
        """Step of the checkpoint of the highest AP, the newest of equals; None where none was evaluated."""
        steps = [step for step in self._whole() if self.evaluated(step)]
        return max(steps, key=lambda step: (_stored_ap(self.folder, step) or 0.0, step), default=None)

    def save(self, step: int, state: Any, data: grain.DatasetIterator) -> None:
        """Saves state and data position as checkpoint `step`, without an AP; does nothing if there is one.

        What is flat in the state (`runtime.flat`) is stored as its arrays.
        """
        if step in self._manager.all_steps():
            return
        position = ocp.args.JsonSave(data.get_state() | {"format": FORMAT, "step": step})
        with self._writing():
            items = ocp.args.Composite(state=ocp.args.PyTreeSave(flat.unflatten(state)), data=position)
            self._manager.save(step, args=items, metrics={})

    def evaluated(self, step: int) -> bool:
        """Whether checkpoint `step` has an AP."""
        ap = _stored_ap(self.folder, step)
        return ap is not None and ap >= 0

    def add_ap(self, step: int, ap: float) -> None:
        """Adds the AP of its evaluation to checkpoint `step`; the former best one stays until the next `save`."""
        folder = epath.Path(self.folder) / str(step) / ocp.checkpoint_manager.METRIC_ITEM_NAME
        handler = ocp.JsonCheckpointHandler(filename=ocp.checkpoint_manager.METRIC_ITEM_NAME)
        with self._writing(), ocp.Checkpointer(handler) as writer:
            self._manager.wait_until_finished()
            writer.save(folder, args=ocp.args.JsonSave({"AP": ap}), force=True)
        self._manager.reload()

    def find(self, which: str = "last") -> int:
        """Step of the newest checkpoint, or of the `best`; raises FileNotFoundError if there is none."""
        if self.latest is None:
            raise FileNotFoundError(f"{self.folder}: no checkpoint; train into this workdir first")
        step = self.best if which == "best" else self.latest
        if step is None:
            where = f"eval.checkpoint='best': no checkpoint of {self.folder!r}"
            raise FileNotFoundError(f"{where} was evaluated; train with train.evaluate_every")
        with files.named_errors(self.folder):
            reason = multihost.from_first(functools.partial(self._damage, step)) if which == "best" else None
        if reason:
            path = os.path.join(self.folder, str(step))
            raise ValueError(f"{path}: {reason}; it is the best one, eval.checkpoint='last' takes the newest whole one")
        return step

    def restore(self, like: Any, data: grain.DatasetIterator | None = None, step: int | None = None) -> Any:
        """The state of `step`, by default the newest; moves `data`, unless None, to the stored position.

        `like` is a state of the same shapes and dtypes, as arrays or jax.ShapeDtypeStruct, with today's shardings.
        Raises FileNotFoundError without a checkpoint, ValueError if another version of the format wrote it.
        """
        step = self.find() if step is None else step
        position = self._restore(step, data=ocp.args.JsonRestore())
        found, path = position.pop("format", 1), os.path.join(self.folder, str(step))
        if found != FORMAT:
            raise ValueError(f"{path}: is of checkpoint format {found}, this version of dpose_jax reads {FORMAT}")
        if data is not None:
            data.set_state(position)
        trees = flat.unflatten(like)
        layout = ocp.checkpoint_utils.construct_restore_args(trees)
        return flat.flatten_like(like, self._restore(step, state=ocp.args.PyTreeRestore(trees, layout)))

    def read(self, step: int) -> dict[str, Any]:
        """The state of `step` as nested dicts and lists of numpy arrays, whatever its model.

        Of the optimizer the moving averages alone are read; every other part of `opt_state` has no array.
        """
        stored = self._manager.item_metadata(step)["state"].tree
        skipped = jax.tree.map(lambda _: ocp.PLACEHOLDER, stored["opt_state"])
        pairs = zip(stored["opt_state"], skipped, strict=True)
        wanted = stored | {"opt_state": [part if _is_average(part) else placeholder for part, placeholder in pairs]}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        return self._restore(step, state=ocp.args.PyTreeRestore(wanted, as_numpy))

    def _restore(self, step: int, **item: Any) -> Any:
        try:
            (found,) = self._manager.restore(step, args=ocp.args.Composite(**item)).values()
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # orbax and tensorstore have types of their own
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            hint = "if a run trains there, it may have deleted it: try again"
            raise OSError(f"{os.path.join(self.folder, str(step))}: cannot be read: {why}; {hint}") from error
        return found

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything is on disk."""
        with self._writing():
            self._manager.wait_until_finished()
        self._manager.close()


def _ap(metrics: dict[str, float]) -> float:
    return metrics.get("AP", -1.0)


def _stored_ap(folder: str, step: int) -> float | None:
    """AP of checkpoint `step`, -1 where it was not evaluated, None where that cannot be read."""
    item = ocp.checkpoint_manager.METRIC_ITEM_NAME
    try:
        ap = _ap(checksums.read_json_object(epath.Path(folder) / str(step) / item / item))
    except ValueError:
        return None
    return ap if isinstance(ap, int | float) and -1 <= ap <= 1 else None


def _steps(folder: str) -> list[int]:
    """The steps whose checkpoints orbax takes to be finished, from the newest; 006 is no name that it gives."""
    names = [path.name for path in ocp.utils.checkpoint_steps_paths(folder)]
    return sorted((int(name) for name in names if name.isdecimal() and name == str(int(name))), reverse=True)


def _is_average(part: Any) -> bool:
    return bool(part) and "updates" in part  # of optimizer.AverageState


def holds_checkpoint(workdir: str) -> bool:
    """Whether there is a whole checkpoint; raises OSError about a bucket that cannot be reached, or must not be."""
    with files.named_errors(workdir):
        folder = epath.Path(workdir) / "checkpoints"
        # Of orbax, because in a bucket, where nothing is renamed, half a checkpoint has its final name already.
        return folder.exists() and ocp.utils.any_checkpoint_step(folder) is not None


class Restored(NamedTuple):
    """What a checkpoint predicts with."""

    variables: dict[str, Any]  # `params` and `batch_stats`, numpy arrays
    step: int | None  # of the checkpoint
    averaged: bool | None  # whether they are its moving averages; None where nothing tells
    seed: int  # of the run
    training_device: str | None  # see `training_device`


def read_variables(workdir: str, *, which: str = "last", ema: bool | None = None) -> Restored:
    """The parameters of a checkpoint, whatever its model. Every process of a run reads all of them.

    `which` is `last`, or `best`: the highest AP of the evaluations during training. `ema` says whether to take the
    moving averages where there are any; None: as the run's `eval.ema`. Raises FileNotFoundError if there is no such
    checkpoint, ValueError if the stored recipe cannot be read.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.find(which)
        recipe, state = stored_recipe(workdir), checkpoints.read(step)
    averages = [part for part in state["opt_state"] if _is_average(part)]
    averaged = bool(averages) and (recipe.eval.ema if ema is None else ema)
    source = averages[0] if averaged else state
    variables = {name: source[name] for name in ("params", "batch_stats")}
    return Restored(variables, step, averaged, recipe.seed, training_device(workdir, step))


def claim_workdir(recipe: Recipe, workdir: str) -> None:
    """Writes the recipe into `workdir`, after `check_workdir` for training, and raises what that does."""
    check_workdir(recipe, workdir, training=True)
    files.write_json(os.path.join(workdir, CONFIG_FILE), as_stored(recipe))


def check_workdir(recipe: Recipe, workdir: str, *, training: bool = False) -> None:
    """Checks that the checkpoints in `workdir`, if there are any, are of the model of `recipe`.

    `training` says whether they are to be trained on; see `compatibility.differences`. Raises ValueError if they are
    not, naming each field that differs, or if `workdir` is empty; FileNotFoundError if there are checkpoints but no
    recipe beside them; another OSError if `workdir` is a file, cannot be written, or is in a bucket that cannot be
    reached, or must not be.
    """
    if not workdir:
        raise ValueError("--workdir='': must name a folder or bucket")
    parent = os.path.abspath(workdir)
    if not files.is_remote(workdir):
        if os.path.islink(parent) and not os.path.exists(parent):
            raise FileNotFoundError(f"workdir {workdir!r}: is a link to {os.readlink(parent)!r}, which is missing")
        while not os.path.exists(parent):
            parent = os.path.dirname(parent)
        if not os.path.isdir(parent):
            what = "is a file" if parent == os.path.abspath(workdir) else f"{parent!r} is a file"
            raise NotADirectoryError(f"workdir {workdir!r}: {what}")
        if not os.access(parent, os.W_OK):
            raise PermissionError(f"workdir {workdir!r}: {parent} is not writable")
    different = differences(recipe, stored_recipe(workdir), training=training) if holds_checkpoint(workdir) else []
    if different:
        what = "another model, optimizer or seed" if training else "another model"
        raise ValueError("\n  ".join([f"workdir {workdir!r} holds the checkpoint of {what}:", *different]))
