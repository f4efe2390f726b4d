"""Videos through OpenCV: frames in, drawn frames out."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from dpose_jax.inference.images import why_no_image


class VideoReader:
    """The frames of a video file, upright; ValueError if OpenCV cannot open it.

    Where the file does not say, `fps` is 25 and `count`, of frames, 0; some containers only estimate the count.
    """

    def __init__(self, path: str):
        self._video = cv2.VideoCapture(path)
        if not self._video.isOpened():
            raise ValueError(f"{path}: is neither an image nor a video that OpenCV can read: {why_no_image(path)}")
        fps, count = self._video.get(cv2.CAP_PROP_FPS), self._video.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps = float(fps) if 0 < fps < 1000 else 25.0
        self.count = max(int(count), 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        """(height, width, 3) uint8 RGB, up to the first frame that cannot be read."""
        while (frame := self._video.read()[1]) is not None:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


@contextlib.contextmanager
def write_video(path: str, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that appends a frame, (height, width, 3) uint8 RGB, all of one size, to an MP4 (MPEG-4 part 2).

    The file appears when the block ends without an error and had a frame. OSError if OpenCV has no encoder for it.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    writer = cv2.VideoWriter()
    # In a folder of its own, for OpenCV picks the container by a suffix that must come last.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".video.") as beside:
        film = os.path.join(beside, "video.mp4")

        def add(frame: np.ndarray) -> None:
            if not writer.isOpened():
                writer.open(film, cv2.VideoWriter.fourcc(*"mp4v"), fps, frame.shape[1::-1])
                if not writer.isOpened():
                    raise OSError(f"{path}: OpenCV cannot write MP4 here")
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

        try:
            yield add
        finally:
            writer.release()
        if os.path.exists(film):
            os.replace(film, path)
