"""TensorBoard's files of a run: written at once, without a thread that could die, and mended at every start."""

import os
import struct
from collections.abc import Iterator

import numpy as np
import tensorboardX.record_writer
import tensorboardX.summary
from etils import epath
from google.protobuf.message import DecodeError
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from dpose_jax.visualization.draw import encode_png
from dpose_jax.workdir import files

# Sorts before every other, whatever the clock says: TensorBoard reads files by name.
MENDED_FILE = "events.out.tfevents.0000000000.mended"


# TensorBoard shows groups by name, and in each its tags: so the loss comes first.
TAGS = {"loss": "loss/all", "loss_diffusion": "loss/diffusion", "loss_coarse": "loss/coarse", "AP": "quality/AP"}
PICTURE_TAG = "predictions and ground truth"


class Board:
    """Writes scalars and pictures; raises OSError where they cannot be written."""

    def __init__(self, folder: str, start: int):
        """Opens a file in `folder`; what was written of steps to `start` goes into one file, all else is dropped."""
        self._folder = folder
        _mend(epath.Path(folder), start)
        tensorboardX.record_writer.directory_check(folder)
        self._writer = EventsWriter(os.path.join(folder, "events"))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars of one step, and unless `folder` is in a bucket, puts them on disk."""
        for name, value in values.items():
            tag = TAGS.get(name, f"training/{name}")
            self._add(Event(summary=tensorboardX.summary.scalar(tag, value), step=step))

    def show(self, step: int, picture: np.ndarray) -> None:
        """Writes a picture of one step, (h, w, 3) uint8 RGB, likewise."""
        image = Summary.Image(height=picture.shape[0], width=picture.shape[1], colorspace=3)
        image.encoded_image_string = encode_png(picture)
        self._add(Event(summary=Summary(value=[Summary.Value(tag=PICTURE_TAG, image=image)]), step=step))

    def _add(self, event: Event) -> None:
        self._writer.write_event(event)
        if not files.is_remote(self._folder):
            self.flush()

    def flush(self) -> None:
        """Puts everything on disk, or into the bucket."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


def _mend(folder: epath.Path, start: int) -> None:
    """Replaces the files by MENDED_FILE: each point of a step to `start` once, in order of steps."""
    paths = sorted(path for path in folder.iterdir() if "tfevents" in path.name) if folder.exists() else []
    head, points = b"", dict[tuple, bytes]()
    for path in paths:
        for record, event in _records(path.read_bytes()):
            if event.file_version:
                head = head or record
            elif event.HasField("summary") and event.step <= start:
                points[event.step, *(value.tag for value in event.summary.value)] = record
    if points:
        ordered = sorted(points.items(), key=lambda item: item[0][0])
        files.write_bytes(folder / MENDED_FILE, head + b"".join(record for _, record in ordered))
    for path in paths:
        if not points or path.name != MENDED_FILE:
            path.unlink()


def _records(content: bytes) -> Iterator[tuple[bytes, Event]]:
    """The TFRecords of a file, each as it stands there and as an event, up to the first that is cut short."""
    begin, around = 0, 16  # bytes around the data of a record: its length and two checksums
    while begin + around <= len(content):
        (size,) = struct.unpack_from("<Q", content, begin)
        end = begin + around + size
        if end > len(content):
            return
        try:
            event = Event.FromString(content[begin + 12 : end - 4])
        except DecodeError:
            return
        yield content[begin:end], event
        begin = end
