"""Videos through OpenCV: frames in, drawn frames out."""

import os
import tempfile
from collections.abc import Iterator

import cv2
import numpy as np

DEFAULT_FPS = 25.0


class VideoReader:
    """The frames of a video file, upright.

    Attributes:
      fps: frames a second; 25 where the file does not say.
      count: of frames as the file says, 0 where it does not; some containers only estimate it.
    """

    def __init__(self, path: str):
        """Raises ValueError if OpenCV cannot open the file or finds no frame in it."""
        self.path, self._video = path, cv2.VideoCapture(path)
        if not self._video.isOpened():
            raise ValueError(f"{path}: is neither an image (by its suffix) nor a video that OpenCV can read")
        fps, count = self._video.get(cv2.CAP_PROP_FPS), self._video.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps = float(fps) if 0 < fps < 1000 else DEFAULT_FPS
        self.count = max(int(count), 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        """(height, width, 3) uint8 RGB, up to the first frame that cannot be read."""
        while True:
            read, frame = self._video.read()
            if not read:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self._video.release()


class VideoWriter:
    """An MP4 (MPEG-4 part 2) that appears at its place when it is finished: written beside, then renamed."""

    def __init__(self, path: str, fps: float):
        self._path, self._fps = path, fps
        self._folder: tempfile.TemporaryDirectory | None = None
        self._writer: cv2.VideoWriter | None = None

    def add(self, frame: np.ndarray) -> None:
        """Appends (height, width, 3) uint8 RGB; all frames are of one size.

        Raises:
          OSError: if OpenCV has no encoder for it.
        """
        if self._writer is None:
            folder = os.path.dirname(os.path.abspath(self._path))
            os.makedirs(folder, exist_ok=True)
            # In a folder of its own, for OpenCV picks the container by a suffix that must come last.
            self._folder = tempfile.TemporaryDirectory(dir=folder, prefix=".video.")
            self._beside = os.path.join(self._folder.name, "video.mp4")
            size = (frame.shape[1], frame.shape[0])
            self._writer = cv2.VideoWriter(self._beside, cv2.VideoWriter.fourcc(*"mp4v"), self._fps, size)
            if not self._writer.isOpened():
                raise OSError(f"{self._path}: OpenCV cannot write MP4 here")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def finish(self) -> None:
        """Puts the video in its place; nothing, if no frame came."""
        if self._writer is not None:
            self._writer.release()
            os.replace(self._beside, self._path)

    def close(self) -> None:
        """Removes what is not finished."""
        if self._writer is not None:
            self._writer.release()
        if self._folder is not None:
            self._folder.cleanup()
