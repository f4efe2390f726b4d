"""Videos through OpenCV: frames in, drawn frames out."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from dpose_jax.data.image_files import open_regular
from dpose_jax.inference.images import why_no_image

MAX_STILL = 60.0  # seconds for which a drawn video shows a frame at most: a damaged time stamp may ask for years


class VideoReader:
    """The frames of a video file, upright; OSError for no regular file, ValueError if OpenCV cannot open it.

    Where the file does not say, `fps` is 25 and `count`, of frames, 0; some containers only estimate the count. `time`
    is that of the frame read last, in seconds: the file's time stamp, or after the frame before by 1 / `fps`.
    """

    def __init__(self, path: str):
        os.close(open_regular(path))
        self._video = cv2.VideoCapture(path)
        if not self._video.isOpened():
            why = why_no_image(path)
            why = "a video that is damaged, or of an unknown codec" if why.startswith("a video") else why
            raise ValueError(f"{path}: is neither an image nor a video that OpenCV can read: {why}")
        self._video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # the default differs between versions
        fps, count = self._video.get(cv2.CAP_PROP_FPS), self._video.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps = float(fps) if 0 < fps < 1000 else 25.0
        self.count = max(int(count), 0)
        self.time = 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        """(height, width, 3) uint8 RGB, up to the first frame that cannot be read."""
        after = 0.0
        while (frame := self._video.read()[1]) is not None:
            stamp = self._video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            self.time = stamp if stamp > self.time else after
            after = self.time + 1 / self.fps
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


@contextlib.contextmanager
def write_video(path: str, fps: float) -> Iterator[Callable[[np.ndarray, float | None], None]]:
    """Gives a function that appends a frame, (height, width, 3) uint8 RGB, all of one size, to an MP4 (MPEG-4 part 2).

    Its second argument is the time in seconds at which the next frame follows, or None. The rate being constant, the
    frame is repeated until then, up to MAX_STILL seconds, and written at least once.
    The file appears when the block ends without an error and had a frame. OSError if OpenCV has no encoder for it, or
    the file did not become whole.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    writer, written = cv2.VideoWriter(), 0
    # In a folder of its own, for OpenCV picks the container by a suffix that must come last.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".video.") as beside:
        film = os.path.join(beside, "video.mp4")

        def add(frame: np.ndarray, until: float | None) -> None:
            nonlocal written
            if not writer.isOpened():
                writer.open(film, cv2.VideoWriter.fourcc(*"mp4v"), fps, frame.shape[1::-1])
                if not writer.isOpened():
                    raise OSError(f"{path}: OpenCV cannot write MP4 here")
            wanted = 1 if until is None else round(until * fps) - written
            for _ in range(max(1, min(wanted, round(MAX_STILL * fps)))):
                writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
                written += 1

        try:
            yield add
        finally:
            writer.release()
        if os.path.exists(film):
            # OpenCV says nothing of a full disk.
            if (whole := int(cv2.VideoCapture(film).get(cv2.CAP_PROP_FRAME_COUNT))) < written:
                raise OSError(errno.ENOSPC, f"{whole} of {written} frames could be written", path)
            os.replace(film, path)
