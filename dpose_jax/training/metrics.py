"""The metrics of a training run: metrics.jsonl, TensorBoard, and the checks that stop a run."""

import codecs
import contextlib
import io
import json
import os
import time
from collections.abc import Iterator

import jax
import numpy as np

from dpose_jax.data.loader import BadRecords
from dpose_jax.data.sample import Source
from dpose_jax.recipe import Data, Train
from dpose_jax.runtime import multihost
from dpose_jax.training.board import Board
from dpose_jax.training.step import LOSS_TERMS
from dpose_jax.workdir import files

_BLANK = "\0 \t\r"  # between objects
_BEGIN = b'{"step": '  # of every line, of which a crash may have left the beginning


class DivergedError(Exception):
    """A loss or gradient is NaN or infinite; the message names the step, the term and the annotation ids."""


class MetricsWriter:
    """Appends one JSON object a log line to WORKDIR/metrics.jsonl, and the same scalars to TensorBoard.

    Each line is on disk when `write` returns; what cannot be written is an OSError that names the file. In a bucket,
    where nothing can be appended, each `flush` writes metrics.jsonl anew.
    """

    def __init__(self, workdir: str, start: int):
        """Opens the files; drops lines after step `start`, whose steps no checkpoint holds.

        Lines that are no object with a step are named and moved to metrics_set_aside.txt. Raises OSError if
        metrics.jsonl is there and no regular file.
        """
        self._path, self._remote = os.path.join(workdir, "metrics.jsonl"), files.is_remote(workdir)
        if not self._remote and os.path.exists(self._path) and not os.path.isfile(self._path):
            raise OSError(f"{self._path}: is no regular file; remove it")  # a FIFO would wait for its writer
        content = files.read_bytes(self._path) if files.exists(self._path) else b""
        kept, odd = _mended(content, self._path)
        if odd:
            aside = os.path.join(workdir, "metrics_set_aside.txt")
            before = files.read_bytes(aside) if files.exists(aside) else b""
            files.write_bytes(aside, before + b"".join(line + b"\n" for line in odd))
        self._kept = "".join(json.dumps(line) + "\n" for line in kept if line["step"] <= start)
        files.write_bytes(self._path, self._kept.encode())
        self._file = io.BytesIO() if self._remote else open(self._path, "ab", buffering=0)
        self._board = Board(os.path.join(workdir, "tensorboard"), start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of one step. Raises OSError also if metrics.jsonl was deleted or moved meanwhile."""
        with files.placed(self._path, (OSError,), OSError):
            if not self._remote and not self._in_place():
                raise OSError("deleted or moved while the run was going on, so the run ends")
            self._file.write((json.dumps({"step": step, **values}) + "\n").encode())
            self._board.write(step, values)

    def show(self, step: int, picture: np.ndarray) -> None:
        """Writes a picture of one step, (h, w, 3) uint8 RGB, to TensorBoard alone."""
        with files.placed(self._path, (OSError,), OSError):
            self._board.show(step, picture)

    def _in_place(self) -> bool:
        assert isinstance(self._file, io.FileIO)
        return os.path.exists(self._path) and os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))

    def flush(self) -> None:
        """Puts the written lines where a resumed run finds them."""
        if isinstance(self._file, io.BytesIO):
            files.write_bytes(self._path, self._kept.encode() + self._file.getvalue())
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes both."""
        with files.placed(self._path, (OSError,), OSError):
            self.flush()
            self._file.close()
            self._board.close()


def _mended(content: bytes, path: str) -> tuple[list[dict], list[bytes]]:
    """The objects of metrics.jsonl, and its lines that hold something else, which are named.

    A crash leaves NUL bytes, a last line without its end, or two objects on a line.
    """
    kept, odd, decoder = list[dict](), list[bytes](), json.JSONDecoder()
    *lines, last = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate([*lines, last], 1):
        text, found, place = line.strip(_BLANK.encode()).decode(errors="replace"), list[dict](), 0
        try:
            while place < len(text):
                value, place = decoder.raw_decode(text, place)
                if not isinstance(value, dict) or type(value.get("step")) is not int:
                    raise ValueError("no object with a step")
                found.append(value)
                while place < len(text) and text[place] in _BLANK:
                    place += 1
            kept += found
        except (ValueError, RecursionError):
            kept += found
            if number <= len(lines) or not (line.startswith(_BEGIN) or _BEGIN.startswith(line)):
                print(f"{path}, line {number}: set aside, it is no object with a step: {text[:60]!r}")
                odd.append(line)
    return kept, odd


class StepLog:
    """Reads metrics one step late, stops the run if one is not finite, and writes those of every `train.log_every`."""

    def __init__(self, data: Data, train: Train, source: Source, start: int, writer: MetricsWriter | None):
        """`start` steps are done. Without a `writer` (every process but the first) nothing is written."""
        self.line = ""
        self._bad = BadRecords(source, data.max_bad_share)
        self._train, self._writer = train, writer
        self._pending: tuple[int, dict[str, jax.Array], dict[str, np.ndarray]] | None = None
        self._first, self._since = start + 1, (start, time.monotonic())

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """A context for a save or evaluation: all lines are kept first; its time does not count for the speed."""
        self.flush()
        began = time.monotonic()
        self.keep()
        yield
        self._since = (self._since[0], self._since[1] + time.monotonic() - began)

    def push(self, step: int, metrics: dict[str, jax.Array], batch: dict[str, np.ndarray]) -> None:
        """Accepts the metrics of `step`, still on the device, and this host's `batch`; flushes the step before."""
        self.flush()
        self._pending = step, metrics, {name: batch[name] for name in ("annotation_id", "bad_index")}

    def flush(self) -> None:
        """Checks and logs the pending metrics.

        Raises DivergedError if one is NaN or infinite, ValueError if too many records have turned out unreadable.
        """
        if self._pending is None:
            return
        (step, metrics, rows), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        # All hosts have the same metrics, so all or none of them gather.
        for name in (*LOSS_TERMS, "loss", "grad_norm"):
            if not np.isfinite(values[name]):
                ids = multihost.gather(rows["annotation_id"]).tolist()
                raise DivergedError(f"step {step}: {name} is {values[name]}; annotation ids {ids}")
        if values.pop("bad_rows"):
            self._bad.add(multihost.gather(rows["bad_index"]))
        now = time.monotonic()
        if step % self._train.log_every == 0 or step == self._train.steps:
            rate = (step - self._since[0]) * self._train.batch_size / (now - self._since[1])
            self._since = (step, now)
            self.write(step, values | {"examples_per_second": round(rate, 2), "bad_records": len(self._bad)})
            self.line = f"loss {values['loss']:.5f}, {rate:.0f} examples/s"
        elif step == self._first:
            self._since = (step, now)  # what came before was compilation

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of one step."""
        if self._writer is not None:
            self._writer.write(step, values)

    def show(self, step: int, picture: np.ndarray) -> None:
        """Writes a picture of one step, (h, w, 3) uint8 RGB, to TensorBoard."""
        if self._writer is not None:
            self._writer.show(step, picture)

    def keep(self) -> None:
        """Puts the written lines where a resumed run finds them."""
        if self._writer is not None:
            self._writer.flush()
