"""Where the figures of a training run go: metrics.jsonl and TensorBoard; and the count of bad records."""

import json
import os

import numpy as np
import tensorboardX
from absl import logging

from dpose_jax.data.records import Source

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends one JSON object a log line to WORKDIR/metrics.jsonl, and the same scalars to TensorBoard."""

    def __init__(self, workdir: str, start: int):
        """Opens the files; lines after step `start`, of a run that did not save them, are dropped."""
        path = os.path.join(workdir, METRICS_FILE)
        kept = []
        if os.path.exists(path):
            with open(path) as file:
                # A line that a crash cut short has no closing brace.
                kept = [line for line in file if line.endswith("}\n") and json.loads(line)["step"] <= start]
        beside = f"{path}.tmp"
        with open(beside, "w") as file:
            file.writelines(kept)
        os.replace(beside, path)
        self._file = open(path, "a", buffering=1)
        self._board = tensorboardX.SummaryWriter(os.path.join(workdir, "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the figures of one step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._board.close()


class BadRecords:
    """Counts unreadable records by name, and stops a run that has too many."""

    def __init__(self, source: Source, max_share: float):
        """`max_share` of the source's records may be unreadable."""
        self._source = source
        self._max_share = max_share
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, bad_index: np.ndarray) -> None:
        """Takes a batch's `bad_index`; each new record is reported by file and id.

        Raises:
          ValueError: if more than the allowed share of all records has turned out to be unreadable.
        """
        for index in {int(i) for i in bad_index if i >= 0} - self._seen:
            self._seen.add(index)
            person = self._source[index]
            logging.warning("unreadable record left out: %s (id %d)", person.file, person.annotation_id)
        if len(self._seen) > self._max_share * len(self._source):
            raise ValueError(
                f"{len(self._seen)} of {len(self._source)} records are unreadable, more than "
                f"data.max_bad_share={self._max_share}; the last: {self._source[max(self._seen)].file}"
            )
