"""Batches from a source: the training stream and the evaluation pass, both through Grain."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from dpose_jax.data import crop
from dpose_jax.data.sample import BadRecordError, Person, Source
from dpose_jax.pose.joint_sets import JointSet, get_joint_set
from dpose_jax.recipe import Augment, Recipe

# Unreadable records in a row after which the data is taken to be broken.
_MAX_REPLACEMENTS = 100

# Bytes from which an array travels from a worker by shared memory: images do, the small arrays do not.
_MIN_SHARED = 1 << 16

Batch = dict[str, np.ndarray]


def crop_spec(config: Recipe) -> crop.CropSpec:
    """The crop of `config.input_size` and `config.crop`; raises ValueError if a field is out of range."""
    return crop.CropSpec(config.input_size, config.crop.padding, config.crop.warp)


def make_example(image: np.ndarray, person: Person, view: crop.View, spec: crop.CropSpec, joint_set: JointSet) -> Batch:
    """One row of a batch, all but `index`, `mask` and `bad_index`."""
    keypoints, visible = crop.warp_joints(person.keypoints, view, spec, joint_set)
    return {
        "image": crop.warp_image(image, view, spec, person.origin),
        "keypoints": keypoints,
        "visible": visible,
        "annotation_id": np.int32(person.annotation_id),
        "to_image": crop.invert(crop.view_matrix(view, spec)).astype(np.float32),
    }


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    """Index -> augmented row; an unreadable record gives way to the next readable one in the source."""

    source: Source
    spec: crop.CropSpec
    augment: Augment
    joint_set: JointSet

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        for step in range(min(len(self.source), _MAX_REPLACEMENTS)):
            used = (index + step) % len(self.source)
            try:
                image = self.source.read_image(used)
            except BadRecordError as error:
                last = error
                continue
            person = self.source[used]
            view = crop.draw_view(rng, person, self.spec, self.augment, self.joint_set)
            return make_example(image, person, view, self.spec, self.joint_set) | {
                "index": np.int32(used),
                "mask": np.float32(1),
                "bad_index": np.int32(-1 if used == index else index),
            }
        raise BadRecordError(f"{step + 1} unreadable records in a row from index {index} on; the last: {last}")


@dataclasses.dataclass(frozen=True)
class _EvalExample:
    """Index -> plain row; index -1 is padding."""

    source: Source
    spec: crop.CropSpec
    joint_set: JointSet

    def __call__(self, index: int) -> Batch:
        blank = np.zeros((*self.spec.input_size, 3), np.uint8)
        nobody = Person(0, 0, "", np.array([0, 0, 1, 1]), np.zeros((self.joint_set.num_joints, 3), np.float32))
        person, image, bad = (self.source[index], None, -1) if index >= 0 else (nobody, blank, -1)
        if image is None:
            try:
                image = self.source.read_image(index)
            except BadRecordError:
                image, bad = blank, index
        view = crop.padded_view(person.bbox, self.spec)
        row = make_example(image, person, view, self.spec, self.joint_set)
        if bad >= 0:
            row |= {"keypoints": np.zeros_like(row["keypoints"]), "visible": np.zeros_like(row["visible"])}
        mask = np.float32(index >= 0 and bad < 0)
        return row | {"index": np.int32(index), "mask": mask, "bad_index": np.int32(bad)}


class TrainIterator(grain.DatasetIterator):
    """Endless training batches; its state is the number of examples consumed.

    The state does not know of workers, hosts or the batch size: a run may be resumed with others and goes on
    at the same example of the same stream.
    """

    def __init__(self, stream: grain.MapDataset, batch_size: int, shard: tuple[int, int], workers: int):
        """Args: the endless stream of rows; the global batch size; (index, count) of this host; processes."""
        super().__init__()
        self._stream = stream
        self._batch_size = batch_size
        self._shard = shard
        self._workers = workers
        self._examples = 0
        self._batches: grain.DatasetIterator | None = None
        self._ended = False

    def __next__(self) -> Batch:
        """The next host-local batch."""
        if self._ended:
            raise ValueError("the iterator is closed")
        if self._batches is None:
            self._batches = self._start()
        batch = _own(next(self._batches))
        self._examples += self._batch_size
        return batch

    def _start(self) -> grain.DatasetIterator:
        index, count = self._shard
        parts = self._stream[self._examples :].batch(self._batch_size // count)
        return iter(read_ahead(parts[index::count], self._workers))

    def get_state(self) -> dict[str, Any]:
        """{"examples": examples consumed by all hosts together since the stream began}."""
        return {"examples": self._examples}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a state of `get_state`, at no cost in the number of examples."""
        self.close_workers()
        self._examples = int(state["examples"])

    def close_workers(self) -> None:
        """Ends worker processes and threads; the next batch starts them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def close(self) -> None:
        """Ends worker processes and threads for good."""
        self._ended = True
        self.close_workers()
        super().close()


def train_iterator(config: Recipe, source: Source, *, shard: tuple[int, int] = (0, 1)) -> TrainIterator:
    """Endless augmented batches, host-local, of the format in docs/data.md.

    All hosts together read one endless stream, epoch after epoch of a fresh permutation, so each person comes
    exactly once an epoch whatever the numbers; a batch may straddle two epochs. Host i of n takes the i-th of
    n equal parts of every global batch, so that it is the same, row by row, for every n. A row depends on
    `config.seed`, the epoch and its index in the source only.

    Args:
      config: uses `seed`, `joint_set`, `input_size`, `crop`, `augment`, `train.batch_size` (of all hosts
        together) and `data.workers`.
      source: of the training persons.
      shard: (index, count) of this host.

    Raises:
      ValueError: if the batch size is not a multiple of the host count, or a field is out of range.
      BadRecordError: on reading, if a hundred records in a row are unreadable.
    """
    size = config.train.batch_size
    _check_shard("train.batch_size", size, shard)
    joint_set = get_joint_set(config.joint_set)
    example = _TrainExample(source, crop_spec(config), config.augment, joint_set)
    # Drawn before the shuffle, the random numbers belong to epoch and index, not to the place in the stream.
    stream = grain.MapDataset.range(len(source)).seed(config.seed).random_map(example).shuffle().repeat()
    return TrainIterator(stream, size, shard, config.data.workers)


class _EvalBatches:
    """Batches that can be read again and again; see `eval_batches`."""

    def __init__(self, rows: grain.MapDataset, workers: int):
        self._rows = rows
        self._workers = workers

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(read_ahead(self._rows, self._workers))
        try:
            yield from map(_own, batches)
        finally:
            batches.close()


def eval_example(config: Recipe, source: Source) -> Callable[[int], Batch]:
    """The function from an index into the source to its row of an evaluation batch; see `eval_batches`."""
    return _EvalExample(source, crop_spec(config), get_joint_set(config.joint_set))


def eval_batches(config: Recipe, source: Source, batch_size: int, *, shard: tuple[int, int] = (0, 1)) -> _EvalBatches:
    """Every person once in source order, without augmentation; has a length and can be read more than once.

    Host i of n gets the i-th part of every global batch, so all hosts run the same number of steps. Padding
    rows have mask 0 and index -1; unreadable records have mask 0 and their index in `bad_index`.

    Args:
      config: uses `joint_set`, `input_size`, `crop` and `data.workers`.
      source: of the persons.
      batch_size: of all hosts together.
      shard: (index, count) of this host.

    Raises:
      ValueError: if the batch size is not a multiple of the host count, or a field is out of range.
    """
    _check_shard("batch_size", batch_size, shard)
    host, count = shard
    rows = np.full(-(-len(source) // batch_size) * batch_size, -1)
    rows[: len(source)] = np.arange(len(source))
    local = rows.reshape(-1, count, batch_size // count)[:, host].ravel()
    dataset = grain.MapDataset.source(local).map(eval_example(config, source)).batch(batch_size // count)
    return _EvalBatches(dataset, config.data.workers)


def _check_shard(field: str, batch_size: int, shard: tuple[int, int]) -> None:
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard={shard}: must be (index, count) with 0 <= index < count")
    if batch_size < 1 or batch_size % count:
        raise ValueError(f"{field}={batch_size}: must be a positive multiple of the number of hosts, {count}")


def _own(batch: Batch) -> Batch:
    """A copy outside of shared memory, whose blocks go back at once: one still held at exit is reported as leaked."""
    return {key: np.array(value) for key, value in batch.items()}


def _one_thread(*_) -> None:
    """Workers are the parallelism; OpenCV's own threads would only fight them and XLA's."""
    cv2.setNumThreads(0)


def read_ahead(dataset: grain.MapDataset, workers: int, elements: int = 2) -> grain.IterDataset:
    """Reads elements ahead, in a thread of this process (0 workers) or in worker processes; in order, all the same.

    `elements` are held ready by each: 2 if they are batches, for which Grain's defaults would hold hundreds.
    """
    _one_thread()
    ahead = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=elements))
    if workers == 0:
        return ahead
    # Grain hands its flags to the workers, which outside of absl's app.run nobody has parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    options = grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED)
    ahead = grain.experimental.WithOptionsIterDataset(ahead, options)
    multiprocessing = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, elements // 2))
    return ahead.mp_prefetch(multiprocessing, worker_init_fn=_one_thread)
