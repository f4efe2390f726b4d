"""The one format that every data source gives: a person in an image."""

import dataclasses
from typing import Protocol

import numpy as np

from dpose_jax.data.jpeg_parts import Window

PERSON_CATEGORY = 1  # COCO's, of its detection files too


class BadRecordError(ValueError):
    """An image or annotation that cannot be used; the message names the file and the id."""


@dataclasses.dataclass(frozen=True)
class Person:
    """One person to estimate, without pixels.

    `keypoints` are (J, 3) float32: x, y in image pixels and visibility 0 (not labelled), 1 (occluded) or 2 (visible);
    zeros for a detected box. Where only the person's surroundings are stored, `origin` is x, y of their corner in the
    image, and `scale` the pixels of `read_image` per image pixel, across and down.
    """

    annotation_id: int  # that of `Source.ground_truth`, or the index of a detected box
    image_id: int  # in the annotation file
    file: str  # the image, for reports
    bbox: np.ndarray  # (4,) float32 x, y, width, height in image pixels; width and height are positive
    keypoints: np.ndarray
    score: float = 1.0  # of the box, in [0, 1]; 1 for an annotated box
    origin: tuple[int, int] = (0, 0)
    scale: tuple[float, float] = (1.0, 1.0)


class Source(Protocol):
    """Random access to the persons of one split; picklable, so that worker processes can hold it."""

    def __len__(self) -> int:
        """Number of persons, without crowds and persons that have no labelled joint."""

    def __getitem__(self, index: int) -> Person:
        """The person at `index`, from memory: no pixel is read."""

    def read_image(self, index: int) -> np.ndarray:
        """The image of that person, or what of it is stored, (height, width, 3) uint8 RGB; raises BadRecordError."""

    def ground_truth(self) -> dict:
        """The split as a COCO `person_keypoints` dict: `images`, `annotations` and one of `categories`.

        Annotations have `id`, `image_id`, `category_id`, `bbox`, `keypoints`, a positive `area` and
        `num_keypoints`. Crowds and persons without a labelled joint are among them.
        """

    def report(self) -> dict[str, int]:
        """How many annotations were `kept`, and how many were left out by each rule; `kept` alone if there is no rule.

        Rules of `coco_format.MALFORMED` count towards `data.max_bad_share`.
        """


def generated(source: Source) -> bool:
    """Whether a source makes its people by index, in milliseconds each, instead of holding annotations."""
    return getattr(source, "generated", False)


def read_part(source: Source, index: int, window: Window) -> np.ndarray:
    """`source.read_image(index)`, of which some pixels outside of a window of the image may be black.

    A source that can read a part faster than the whole has a method of this name. What is damaged outside of the window
    need not be found.
    """
    part = getattr(source, "read_part", None)
    return source.read_image(index) if part is None else part(index, window)
