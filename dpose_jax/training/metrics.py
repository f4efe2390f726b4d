"""Where the figures of a training run go: metrics.jsonl and TensorBoard; and the count of bad records."""

import json
import os

import numpy as np
import tensorboardX
from absl import logging

from dpose_jax.data.annotations import MALFORMED
from dpose_jax.data.records import Source
from dpose_jax.files import write_bytes

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
        write_bytes(path, "".join(kept).encode())
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
    """Counts unreadable records by name, beside the malformed ones that the source left out; stops at too many.

    A resumed run counts unreadable records anew.
    """

    def __init__(self, source: Source, max_share: float):
        """`max_share` of the source's records may be malformed or unreadable."""
        self._source = source
        self._max_share = max_share
        self._seen: set[int] = set()
        report = source.report()
        self._malformed = sum(report.get(rule, 0) for rule in MALFORMED)

    def __len__(self) -> int:
        return self._malformed + len(self._seen)

    def add(self, bad_index: np.ndarray) -> None:
        """Takes a batch's `bad_index`; each new record is reported by file and id.

        Raises:
          ValueError: if more than the allowed share of all records has turned out to be unreadable.
        """
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
