"""What a prediction has finished: kept beside its results, so that one that was stopped goes on."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import IO, Any

from dpose_jax.workdir.files import write_bytes

FILE = "unfinished.jsonl"

Entry = dict[str, Any]


def stamp(path: str) -> list[int]:
    """Size in bytes and time of the last change of a file, in ns: what tells whether it is the one of before."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _line(entry: Entry) -> str:
    text = json.dumps(entry, allow_nan=False)
    return f"{_checksum(text)} {text}"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Progress:
    """The finished images of a prediction: in OUT/unfinished.jsonl until all are.

    The file's first line says what predicts which input how, `made_by`; then each image has a line: a checksum and a
    JSON object with `image`, a row of images.json, `results`, `problems` and `stamp`. A line that a kill cut short or
    another program changed, and what follows it, is not read.

    Attributes:
      path: of the file; it is there from the first `add` to `finish`.
      entries: those of this prediction, by image id.
      before: how many of these an earlier start has finished.
    """

    def __init__(self, out: str, made_by: Mapping[str, Any]):
        """Reads what an earlier start has finished of the same `made_by`, JSON values; writes nothing."""
        self.path, self._header = os.path.join(out, FILE), json.dumps(made_by)
        self._earlier = {entry["image"]["id"]: entry for entry in self._read()}
        self.entries: dict[int, Entry] = {}
        self.before = 0
        self._file: IO[str] | None = None

    def _read(self) -> list[Entry]:
        if not os.path.isfile(self.path):
            return []
        found = []
        with open(self.path, encoding="utf-8", errors="replace") as file:
            if file.readline().rstrip("\n") != self._header:
                return []
            for line in file:
                checksum, _, text = line.rstrip("\n").partition(" ")
                if checksum != _checksum(text):
                    break
                found.append(json.loads(text))
        return found

    def resume(self, image_id: int, file_name: str, its_stamp: list[int] | None) -> bool:
        """Whether an earlier start has finished this image, which is then one of `entries`."""
        entry = self._earlier.get(image_id)
        if entry is None or entry["image"]["file_name"] != file_name or entry["stamp"] != its_stamp:
            return False
        self.entries[image_id] = entry
        self.before += 1
        return True

    def resume_frames(self, its_stamp: list[int]) -> None:
        """Takes all that an earlier start has finished of a video."""
        for image_id, entry in self._earlier.items():
            self.resume(image_id, entry["image"]["file_name"], its_stamp)

    def add(self, entry: Entry) -> None:
        """Keeps a finished image, also on the disk; OSError if that is full."""
        line = _line(entry) + "\n"
        if self._file is None:
            kept = [self._header, *map(_line, self._earlier.values())]
            write_bytes(self.path, ("\n".join(kept) + "\n").encode())
            self._file = open(self.path, "a", encoding="utf-8")
        self._file.write(line)
        self._file.flush()
        self.entries[entry["image"]["id"]] = entry

    def close(self) -> None:
        """Leaves the file, for another start."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass  # what a full disk has not taken is not among the finished
            self._file = None

    def finish(self) -> None:
        """Removes the file: the results are written."""
        self.close()
        if os.path.exists(self.path):
            os.remove(self.path)

    def told(self, total: int) -> str:
        """What is kept, of `total` images (0: unknown), for a run that stops."""
        if not self.entries:
            return "nothing was finished"
        count = f"{len(self.entries)} of {total}" if total else str(len(self.entries))
        return f"{count} images are finished and kept in {self.path}; the same command goes on from there"
