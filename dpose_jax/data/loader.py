"""Batches from a source: the training stream and the evaluation pass, both through Grain."""

import contextlib
import dataclasses
import functools
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags, logging

from dpose_jax.data import crop
from dpose_jax.data.camera import degrade
from dpose_jax.data.coco_format import MALFORMED
from dpose_jax.data.crop import crop_spec
from dpose_jax.data.sample import BadRecordError, Person, Source, read_part
from dpose_jax.data.shared_memory import FOLDER, WAYS_OUT, smallest_shared
from dpose_jax.data.watchdog import Watchdog
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.recipe import Augment, Recipe

_MAX_REPLACEMENTS = 100  # unreadable records in a row after which the data is taken to be broken

# What the watchdog says of a batch that does not come.
SLOW = "a disk or server that does not answer, too few data.workers, or a worker that hangs; still waiting"

# Why the system kills a worker.
_HINTS: dict[int, str] = {
    signal.SIGKILL: "often by the system for want of memory: lower data.workers",
    signal.SIGBUS: f"the shared memory of {FOLDER} is full: {WAYS_OUT}",
}

Batch = dict[str, np.ndarray]
Row = dict[str, Any]  # of a batch: arrays and numpy scalars


def make_example(image: np.ndarray, person: Person, view: crop.View, spec: crop.CropSpec, joint_set: JointSet) -> Row:
    """One row of a batch, all but `index`, `mask` and `bad_index`."""
    keypoints, visible = crop.warp_joints(person.keypoints, view, spec, joint_set)
    return {
        "image": crop.warp_image(image, view, spec, person.origin, person.scale),
        "keypoints": keypoints,
        "visible": visible,
        "annotation_id": np.int32(person.annotation_id),
        "to_image": crop.invert(crop.view_matrix(view, spec)).astype(np.float32),
    }


def _train_row(
    source: Source, spec: crop.CropSpec, augment: Augment, joint_set: JointSet, index: int, rng: np.random.Generator
) -> Row:
    """The augmented row of an index; the next readable record of the source replaces an unreadable one."""
    for step in range(min(len(source), _MAX_REPLACEMENTS)):
        used = (index + step) % len(source)
        person, drawn = source[used], rng.bit_generator.state
        view = crop.draw_view(rng, person, spec, augment, joint_set)
        try:
            image = read_part(source, used, crop.view_window(view))
        except BadRecordError as error:
            last, rng.bit_generator.state = error, drawn
            continue
        bad = np.int32(-1 if used == index else index)
        row = make_example(image, person, view, spec, joint_set)
        if augment.camera:
            row["image"] = degrade(rng, row["image"], augment.camera)
        return row | {"index": np.int32(used), "mask": np.float32(1), "bad_index": bad}
    raise BadRecordError(f"{step + 1} unreadable records in a row from index {index} on; the last: {last}")


def _eval_row(source: Source, spec: crop.CropSpec, joint_set: JointSet, index: int) -> Row:
    """The plain row of an index; -1 is padding."""
    image, bad = np.zeros((*spec.input_size, 3), np.uint8), -1
    unlabelled = np.zeros((joint_set.num_joints, 3), np.float32)
    person = Person(0, 0, "", np.array([0, 0, 1, 1]), unlabelled)
    if index >= 0:
        person = source[index]
        try:
            image = read_part(source, index, crop.view_window(crop.padded_view(person.bbox, spec)))
        except BadRecordError:
            person, bad = dataclasses.replace(person, keypoints=unlabelled), index
    row = make_example(image, person, crop.padded_view(person.bbox, spec), spec, joint_set)
    mask = np.float32(index >= 0 and bad < 0)
    return row | {"index": np.int32(index), "mask": mask, "bad_index": np.int32(bad)}


class TrainIterator(grain.DatasetIterator):
    """See `train_iterator`; the state, examples consumed by all hosts, fits any workers, hosts and batch size."""

    def __init__(self, stream: grain.MapDataset, recipe: Recipe, shard: tuple[int, int]):
        super().__init__()
        self._stream, self._recipe, self._shard = stream, recipe, shard
        self._examples, self._closed = 0, False
        self._batches: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        batches = self._reading()
        with self._watchdog.waits(), _named_deaths():
            batch = _copied(next(batches))
        self._examples += self._recipe.train.batch_size
        return batch

    def start(self) -> None:
        """Begins to read ahead, which the first batch would else wait for."""
        batches = self._reading()
        batches.get_state()  # Without it Grain has no workers yet that could be started.
        batches.start_prefetch()

    def _reading(self) -> grain.DatasetIterator:
        if self._closed:
            raise ValueError("the iterator is closed")
        if self._batches is None:
            (index, count), size = self._shard, self._recipe.train.batch_size
            parts = self._stream[self._examples :].batch(size // count)
            self._batches = iter(read_batches(parts[index::count], self._recipe, size // count))
            self._watchdog = Watchdog(SLOW)
        return self._batches

    def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shapes and dtypes of a batch, by reading one example: data of which none can be read raises here already."""
        size = self._recipe.train.batch_size // self._shard[1]
        row = {name: np.asarray(value) for name, value in self._stream[self._examples].items()}
        return {name: ((size, *value.shape), value.dtype) for name, value in row.items()}

    def get_state(self) -> dict[str, Any]:
        """{"examples": examples consumed since the stream began}."""
        return {"examples": self._examples}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a state of `get_state`, in constant time."""
        self.close()
        self._examples, self._closed = int(state["examples"]), False

    def close(self) -> None:
        """Ends worker processes and threads; only `set_state` starts them again."""
        if self._batches is not None:
            self._batches.close()
            self._watchdog.close()
        self._batches, self._closed = None, True


def train_iterator(recipe: Recipe, source: Source, *, shard: tuple[int, int] = (0, 1)) -> TrainIterator:
    """Endless augmented batches, host-local, of the format in docs/data.md; `shard` is (index, count) of this host.

    All hosts together read one endless stream of epochs, each a new permutation of all persons. A batch may straddle
    two epochs. Host i of n takes the i-th of n equal parts of every global batch, which is thus the same for every n.
    A row depends on `recipe.seed`, the epoch and its index in the source only.
    Raises ValueError if the batch size is not a multiple of the host count, and BadRecordError, on reading, if a
    hundred records in a row are unreadable.
    """
    _check_shard("train.batch_size", recipe.train.batch_size, shard)
    example = train_example(recipe, source)
    # Drawn before the shuffle, the random numbers belong to epoch and index, not to the place in the stream.
    stream = grain.MapDataset.range(len(source)).seed(recipe.seed).random_map(example).shuffle().repeat()
    return TrainIterator(stream, recipe, shard)


def train_example(recipe: Recipe, source: Source) -> Callable[[int, np.random.Generator], Row]:
    """The function from an index into the source, and a generator, to its row of a training batch."""
    return functools.partial(_train_row, source, crop_spec(recipe), recipe.augment, recipe.joints)


class EvalBatches:
    """See `eval_batches`."""

    def __init__(self, batches: grain.MapDataset, read: Callable[[grain.MapDataset], grain.IterDataset]):
        self._batches, self._read = batches, read

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        watched = contextlib.closing(Watchdog(SLOW))
        with contextlib.closing(iter(self._read(self._batches))) as batches, watched as watchdog:
            while True:
                with watchdog.waits(), _named_deaths():
                    batch = next(batches, None)
                if batch is None:
                    return
                yield _copied(batch)


def eval_example(recipe: Recipe, source: Source) -> Callable[[int], Row]:
    """The function from an index into the source to its row of an evaluation batch."""
    return functools.partial(_eval_row, source, crop_spec(recipe), recipe.joints)


def eval_batches(recipe: Recipe, source: Source, batch_size: int, *, shard: tuple[int, int] = (0, 1)) -> EvalBatches:
    """Every person once in source order, without augmentation; has a length and can be read more than once.

    Host i of n (its `shard`) gets the i-th part of every global batch of `batch_size`, so all hosts run the same
    number of steps. Padding rows have mask 0 and index -1; unreadable records have mask 0 and their index in
    `bad_index`. Raises ValueError if the batch size is not a positive multiple of the host count.
    """
    _check_shard("batch_size", batch_size, shard)
    host, count = shard
    rows = np.pad(np.arange(len(source)), (0, -len(source) % batch_size), constant_values=-1)
    local = rows.reshape(-1, count, batch_size // count)[:, host].ravel()
    dataset = grain.MapDataset.source(local).map(eval_example(recipe, source)).batch(batch_size // count)
    return EvalBatches(dataset, functools.partial(read_batches, recipe=recipe, size=batch_size // count))


def _check_shard(field: str, batch_size: int, shard: tuple[int, int]) -> None:
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard={shard}: must be (index, count) with 0 <= index < count")
    if batch_size < 1 or batch_size % count:
        raise ValueError(f"{field}={batch_size}: must be a positive multiple of the number of hosts, {count}")


def _copied(batch: Batch) -> Batch:
    """A copy outside of shared memory, whose blocks go back at once: one still held at exit is reported as leaked."""
    return {key: np.array(value) for key, value in batch.items()}


@contextlib.contextmanager
def _named_deaths() -> Iterator[None]:
    """Turns Grain's error about a worker process that was killed into a ChildProcessError of one line."""
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"Worker process was terminated unexpectedly with exit code (-?\d+)", str(error))
        if not found:
            raise
        code = int(found[1])
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        hint = _HINTS.get(-code, "see above")
        raise ChildProcessError(f"a process of data.workers was {how} ({hint})") from None


def _one_thread() -> None:
    """Turns off OpenCV's own threads, which would compete with the workers and with XLA."""
    cv2.setNumThreads(0)


def _start_tracker() -> None:
    """Starts Python's resource tracker, which removes the shared memory and semaphores that a kill leaves.

    It is deaf to SIGHUP too, of a terminal that ends, and says nothing of what it removes.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before, options = signal.signal(signal.SIGHUP, signal.SIG_IGN), sys.warnoptions[:]
    sys.warnoptions.append("ignore::UserWarning")  # the tracker inherits both
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions[:] = options
        signal.signal(signal.SIGHUP, before or signal.SIG_DFL)


def _start_worker(parent: int, *_) -> None:
    """Prepares a worker process, which ends with its `parent`, however that dies.

    Then the last of them to go closes the pipe to Python's resource tracker, which removes their shared memory.
    """
    _one_thread()
    # Ctrl-C, `timeout`, SLURM and a terminal that ends signal the whole group, and the parent still has to save.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_batches(dataset: grain.MapDataset, recipe: Recipe, size: int) -> grain.IterDataset:
    """`read_ahead` of batches of `size` crops of the recipe."""
    return read_ahead(dataset, recipe.data.workers, image_bytes=size * 3 * math.prod(recipe.input_size))


def read_ahead(
    dataset: grain.MapDataset, workers: int, elements: int = 2, *, image_bytes: int = 0
) -> grain.IterDataset:
    """Reads a dataset ahead, in order: in a thread of this process (0 workers) or in worker processes.

    Each thread or worker holds `elements` ready. Of batches 2 are enough; Grain's defaults would hold hundreds.
    `image_bytes` is for `smallest_shared`, which may raise OSError.
    """
    _one_thread()
    ahead = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=elements))
    if workers == 0:
        return ahead
    _start_tracker()
    # Grain hands its flags to the workers, which outside of absl's app.run nobody has parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    options = grain.experimental.DatasetOptions(min_shm_size=smallest_shared(workers, image_bytes))
    ahead = grain.experimental.WithOptionsIterDataset(ahead, options)
    multiprocessing = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, elements // 2))
    return ahead.mp_prefetch(multiprocessing, worker_init_fn=functools.partial(_start_worker, os.getpid()))


class BadRecords:
    """Counts unreadable records, beside the malformed that the source left out; a resumed run counts them anew."""

    def __init__(self, source: Source, max_share: float):
        """`max_share` of the source's records may be malformed or unreadable."""
        self._source, self._max_share = source, max_share
        self._seen: set[int] = set()
        report = source.report()
        self._malformed = sum(report.get(rule, 0) for rule in MALFORMED)

    def __len__(self) -> int:
        return self._malformed + len(self._seen)

    def add(self, bad_index: np.ndarray) -> None:
        """Takes a batch's `bad_index`, and reports each new record; raises ValueError beyond the allowed share."""
        for index in {int(i) for i in bad_index if i >= 0} - self._seen:
            self._seen.add(index)
            person = self._source[index]
            logging.warning("unreadable record left out: %s (id %d)", person.file, person.annotation_id)
        total = self._malformed + len(self._source)
        if self._seen and len(self) > self._max_share * total:
            raise ValueError(
                f"{self._malformed} of {total} records are malformed and {len(self._seen)} unreadable, more than "
                f"data.max_bad_share={self._max_share}; one of them: {self._source[max(self._seen)].file}"
            )
