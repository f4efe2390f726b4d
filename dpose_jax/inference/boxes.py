"""Boxes of persons: where they come from, checked, clipped to their image."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpose_jax.data.coco_format import is_int, is_number, numbers
from dpose_jax.data.sample import PERSON_CATEGORY
from dpose_jax.workdir.files import read_json


def checked_boxes(boxes, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """Clips boxes to their image, of `size` (height, width), and lists what is wrong with those that cannot be used.

    Boxes are (N, 4) x, y, width, height in image pixels, or (N, 5) with a score in [0, 1]; N may be 0; ValueError for
    another shape or type. Returns (N, 5) float64 clipped boxes and scores (1 where none are given), and N texts, empty
    for a usable box.
    """
    try:
        given = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"boxes: must be numbers, (N, 4) or (N, 5): {error}") from error
    if given.size == 0:
        given = given.reshape(0, 5)
    if given.ndim != 2 or given.shape[1] not in (4, 5):
        raise ValueError(f"boxes: must be (N, 4) x, y, width, height, or (N, 5) with a score, got {given.shape}")
    if given.shape[1] == 4:
        given = np.concatenate([given, np.ones((len(given), 1))], axis=1)
    low, high = np.maximum(given[:, :2], 0), np.minimum(given[:, :2] + given[:, 2:4], size[::-1])
    rules = {
        "not finite": ~np.isfinite(given[:, :4]).all(axis=1),
        "width and height must be positive": (given[:, 2:4] <= 0).any(axis=1),
        f"lies outside of the image, {size[1]} x {size[0]}": (high <= low).any(axis=1),
        "the score must lie in [0, 1]": ~((given[:, 4] >= 0) & (given[:, 4] <= 1)),
    }
    broken = np.select(list(rules.values()), list(rules), "").tolist()
    problems = [
        f"box {i} {np.round(box[:4], 2).tolist()}: {rule}" if rule else ""
        for i, (box, rule) in enumerate(zip(given, broken, strict=True))
    ]
    return np.concatenate([low, high - low, given[:, 4:]], axis=1), problems


class BoxSource:
    """Where the boxes of an image's persons come from; this one takes every image for one person.

    Boxes with a score below `min_score`, in [0, 1], are left out. `problems` are texts: what is wrong with a source of
    which the rest can be used.
    """

    def __init__(self, min_score: float = 0.0):
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_box_score={min_score}: must lie in [0, 1]")
        self.min_score, self.problems = min_score, list[str]()

    def image_ids(self, names: Sequence[str]) -> list[int]:
        """The ids of image files; ValueError if the source cannot have a box for any of them."""
        return number_images(names)

    def check(self, ids: Sequence[int]) -> None:
        """Raises ValueError if the source cannot have a box for any of these images."""

    def of(self, image_id: int, pixels: np.ndarray) -> Sequence[Sequence[float]] | np.ndarray:
        """Boxes of an image, (height, width, 3) uint8 RGB, as `checked_boxes` takes them."""
        return [[0, 0, pixels.shape[1], pixels.shape[0]]]


class BoxFile(BoxSource):
    """Boxes of persons by image, from any COCO-format file; its entries that cannot be read are `problems`."""

    def __init__(self, path: str, min_score: float = 0.0):
        """Reads a list of detections, as COCO's result files, or an object with `images` and `annotations`.

        Left out are detections below `min_score`, crowds, and entries of another category than the persons', which is
        1 or the one that the file calls "person". Raises FileNotFoundError if there is no such file, and ValueError if
        it is of neither form.
        """
        super().__init__(min_score)
        self.path, content = path, read_json(path)
        person, entries, images = PERSON_CATEGORY, content, list[Any]()
        if isinstance(content, dict):
            entries, images = content.get("annotations"), content.get("images", [])
            categories = [c for c in content.get("categories", []) if isinstance(c, dict) and "id" in c]
            person = next((c["id"] for c in categories if c.get("name") == "person"), person)
        if not isinstance(entries, list) or not isinstance(images, list):
            raise ValueError(f"{path}: must be a list of detections or an object with the lists images and annotations")
        self._ids: dict[str, set[int]] = {}
        for position, image in enumerate(images):
            fields = image if isinstance(image, dict) else {}
            name, number = fields.get("file_name"), fields.get("id")
            if isinstance(name, str) and is_int(number):
                self._ids.setdefault(os.path.basename(name), set()).add(number)
            else:
                self.problems.append(f"{path}: image {position} has no id or file_name: {str(image)[:80]}")
        self._boxes: dict[int, list[list[float]]] = {}
        for position, entry in enumerate(entries):
            fields = entry if isinstance(entry, dict) else {}
            box, number, score = numbers(fields.get("bbox"), 4), fields.get("image_id"), fields.get("score", 1.0)
            if box is None or not is_int(number) or not is_number(score):
                self.problems.append(f"{path}: entry {position} has no image_id, bbox or score: {str(entry)[:80]}")
            elif fields.get("category_id", person) == person and score >= min_score and not fields.get("iscrowd"):
                self._boxes.setdefault(number, []).append([*box.tolist(), score])

    def image_ids(self, names: Sequence[str]) -> list[int]:
        """The ids of image files: by the file's own list of images, else by `number_images`.

        ValueError if it has no box for any of them, or lists a name, its folder apart, under several ids.
        """
        ids = number_images(names)
        if self._ids:
            free = itertools.count(1 + max(*ids, *itertools.chain(*self._ids.values())))
            ids = []
            for name in names:
                known = self._ids.get(name, set())
                if len(known) > 1:
                    raise ValueError(f"{self.path}: lists {name!r} under the ids {sorted(known)}, of several folders")
                ids += known or {next(free)}
        self.check(ids)
        return ids

    def check(self, ids: Sequence[int]) -> None:
        if not set(ids) & set(self._boxes):
            some = ", ".join(map(str, ids[:3]))
            raise ValueError(f"{self.path}: has no box for any of the images; ids looked for: {some}, ...")

    def of(self, image_id: int, pixels: np.ndarray | None = None) -> list[list[float]]:
        """The boxes that the file has for this id; the pixels are not used."""
        return self._boxes.get(image_id, [])


def number_images(names: Sequence[str]) -> list[int]:
    """Ids of image files: the numbers that they are called by, as COCO's are, else 1, 2, 3, ... in their order."""
    stems = [os.path.splitext(name)[0] for name in names]
    numbered = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    return numbered if len(set(numbered)) == len(names) else list(range(1, len(names) + 1))
