"""Boxes of persons: where they come from, checked, clipped to their image."""

import collections
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from dpose_jax.data.categories import closest, listed_categories, person_category, person_id
from dpose_jax.data.coco_format import is_crowd_flag, is_image_id, is_int, is_number, numbers
from dpose_jax.data.doubts import doubts, like_corners, normalised
from dpose_jax.data.exports import as_coco, as_results
from dpose_jax.data.sample import PERSON_CATEGORY
from dpose_jax.inference.image_ids import NameIndex, number_images, number_of
from dpose_jax.workdir.files import read_bytes, read_json

ONE_BOX = "one box is [[x, y, width, height]]"


def checked_boxes(boxes, size: tuple[int, int], hint: str = ONE_BOX) -> tuple[np.ndarray, list[str]]:
    """Clips boxes to their image, of `size` (height, width), and lists what is wrong with those that cannot be used.

    Boxes are (N, 4) x, y, width, height in image pixels, or (N, 5) with a score in [0, 1]; N may be 0; ValueError for
    another shape or type, of a single row with the `hint`. Returns (N, 5) float64 clipped boxes and scores (1 where
    none are given), and N texts, empty for a usable box.
    """
    rule = "boxes: must be numbers, (N, 4) x, y, width, height, or (N, 5) with a score"
    try:
        given = np.asarray(boxes, np.float64)
    except (TypeError, ValueError, OverflowError) as error:  # text, rows of different lengths, an integer above 1e308
        raise ValueError(f"{rule}, got {boxes!r:.80}") from error
    if given.size == 0:
        given = given.reshape(0, 5)
    if given.ndim != 2 or given.shape[1] not in (4, 5):
        raise ValueError(f"{rule}, got {given.shape}{f'; {hint}' if given.ndim == 1 else ''}")
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


def seen_boxes(boxes: Iterable, size: tuple[int, int]) -> dict[str, int]:
    """A report for `doubts`: how many of an image's boxes, of pixels `size` (width, height), look like what."""
    seen = collections.Counter(kept=0, looks_normalised=0, looks_like_corners=0)
    for box in boxes:
        looks = {"looks_normalised": normalised(box[:4], size), "looks_like_corners": like_corners(box[:4], size)}
        seen.update({"kept": 1} | looks)
    return seen


WHOLE = (
    "each image was taken for one person as a whole; --detector=fasterrcnn finds people (downloads 167 MB once), "
    "--boxes=FILE gives their boxes"
)


_SHOWN = 20  # problems of a file that are told one by one


class BoxSource:
    """Where the boxes of an image's persons come from; this one takes every image for one person.

    Boxes with a score below `min_score`, in [0, 1], are left out. `problems` are texts: what is wrong with a source of
    which the rest can be used; `notes` say what it leaves out or takes by rule. `category_id` is the person's, for
    results. `digest` is the SHA-256 of the file behind it, if any.
    """

    takes_whole = True  # every image for one person

    def __init__(self, min_score: float = 0.0):
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_box_score={min_score}: must lie in [0, 1]")
        self.min_score, self.category_id = min_score, PERSON_CATEGORY
        self.problems, self.notes = list[str](), [WHOLE] if self.takes_whole else []
        self.digest = ""

    def identity(self) -> list[Any]:
        """JSON values that are equal where the boxes of an image are."""
        return [type(self).__name__, self.digest, self.min_score, self.category_id]

    def image_ids(self, names: Sequence[str], folder: str = "") -> list[int]:
        """The ids of image files, named from `folder` on; ValueError if the source cannot have a box for any."""
        return number_images(names)

    def check_frames(self, count: int) -> None:
        """Raises ValueError if the source cannot have a box for any frame 0 to `count` - 1; 0 is an unknown count."""

    def doubts(self) -> list[str]:
        """Sentences on what is odd about the boxes that `of` gave; told after the last image."""
        return []

    def of(self, image_id: int, pixels: np.ndarray) -> Sequence[Sequence[float]] | np.ndarray:
        """Boxes of an image, (height, width, 3) uint8 RGB, as `checked_boxes` takes them."""
        return [[0, 0, pixels.shape[1], pixels.shape[0]]]


def _named_images(rows: list) -> list[dict]:
    """The images of detections that all have a `file_name` beside a number, as newer Ultralytics' have; else none."""
    found = {}
    for row in rows:
        fields = row if isinstance(row, dict) else {}
        name, number = fields.get("file_name"), fields.get("image_id")
        if not isinstance(name, str) or not is_image_id(number):
            return []
        found[name, number] = {"id": number, "file_name": name}
    return list(found.values())


class BoxFile(BoxSource):
    """Boxes of persons by image, from any COCO-format file; its entries that cannot be read are `problems`.

    Its images are found by name. Where it lists `images`, or each detection has a `file_name`, the names are
    theirs. Otherwise the name is `image_id`: a text is the file's name, with or without its ending, a number that
    of COCO's releases (000000000139.jpg).
    """

    takes_whole = False

    def __init__(self, path: str, min_score: float = 0.0, *, category: str | None = None, by_number: bool = False):
        """Reads a list of detections, as COCO's result files, or an object with `images` and `annotations`.

        Left out are detections below `min_score`, crowds, and entries of another category than the persons', which
        `category` names (see `person_category` and `person_id`). With `by_number` the number that ends a file's name is
        its `image_id`. Raises FileNotFoundError if there is no such file, and ValueError if it is of neither form, or
        does not tell which category is the person.
        """
        super().__init__(min_score)
        self.path, self._by_number, content = path, by_number, read_json(path)
        as_coco(content)
        as_results(content)
        self.digest = f"{hashlib.sha256(read_bytes(path)).hexdigest()} {by_number}"
        entries, images, categories = content, list[Any](), None
        if isinstance(content, list):
            images = _named_images(content)
        if isinstance(content, dict):
            entries, images = content.get("annotations"), content.get("images", [])
            categories = content.get("categories")
        if not isinstance(entries, list) or not isinstance(images, list):
            has = f", got one of {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, dict) else ""
            raise ValueError(
                f"{path}: must be a list of detections or an object with the lists images and annotations{has}"
            )
        self._names = list(self._listed(images))  # (file name, id)
        if images and not self._names:
            raise ValueError(f"{self.problems[0]}; none of its {len(images)} images can be used")
        read = list(self._read(entries))
        counts = collections.Counter(number for _, number, _ in read if number is not None)
        if listed := listed_categories(categories):
            self.category_id = person_category(listed, category, path, "--category").id
        else:
            self.category_id = person_id(counts, category, path, "--category")
        if others := sum(counts.values()) - counts[self.category_id]:
            self.notes.append(f"{path}: the person is category {self.category_id}; left out: {others} of others")
        self._boxes: dict[int | str, list[list[float]]] = {}
        mine = [(key, box) for key, number, box in read if number in (None, self.category_id)]
        low = sum(box[4] < min_score for _, box in mine)
        for key, box in mine:
            if box[4] >= min_score:
                self._boxes.setdefault(key, []).append(box)
        reasons = {
            f"malformed, the first: {''.join(self.problems[:1])}": len(self.problems),
            f"with a score below --min_box_score={min_score:g}": low,
            f"of another category than {self.category_id}": others,
            "crowds": sum(entry.get("iscrowd") in (1, True) for entry in entries if isinstance(entry, dict)),
        }
        self._unused = ", ".join(f"{count} {why}" for why, count in reasons.items() if count > 0) or "it has no entries"
        if (more := len(self.problems) - _SHOWN) > 1:
            self.problems[_SHOWN:] = [f"{path}: {more} more entries cannot be read"]
        self._index = NameIndex(self._names or [(key, key) for key in self._boxes if isinstance(key, str)])
        self._keys: dict[int, int | str | None] | None = None  # of images that were asked for, by their id
        self._seen: collections.Counter[str] = collections.Counter()

    def _listed(self, images: list) -> Iterator[tuple[str, int]]:
        for position, image in enumerate(images):
            fields = image if isinstance(image, dict) else {}
            name, number = fields.get("file_name"), fields.get("id")
            if isinstance(name, str) and is_image_id(number):
                yield name, number
            else:
                wrong = f"the id {number!r:.40}, which must be an integer from 0 to 2**63 - 1"
                wrong = wrong if isinstance(name, str) else f"the file_name {name!r:.40}, which must be text"
                self.problems.append(f"{self.path}: image {position} has {wrong}: {str(image)[:80]}")

    def _read(self, entries: list) -> Iterator[tuple[int | str, int | None, list[float]]]:
        """(image, category, [x, y, width, height, score]) of every entry that can be read and is no crowd."""
        for position, entry in enumerate(entries):
            fields = entry if isinstance(entry, dict) else {}
            key: Any = fields.get("image_id")
            box, score = numbers(fields.get("bbox"), 4), fields.get("score", 1.0)
            crowd, number, problem = fields.get("iscrowd"), fields.get("category_id"), ""
            if not is_image_id(key) and (self._names or not isinstance(key, str) or not key):
                problem = f"the image_id {key!r}, which is no id from 0 to 2**63 - 1"
            if not is_number(score):
                problem = f"the score {score!r}, which is no number"
            elif number is not None and not is_image_id(number):
                problem = f"the category_id {number!r:.40}, which is no integer from 0 to 2**63 - 1"
            elif not is_crowd_flag(crowd):
                problem = f"the iscrowd {crowd!r}, which is not 0 or 1"
            if box is None or problem:
                reason = problem or "no bbox of 4 numbers"
                self.problems.append(f"{self.path}: entry {position} has {reason}: {str(entry)[:80]}")
            elif not crowd:
                yield key, number, [*box.tolist(), score]

    def image_ids(self, names: Sequence[str], folder: str = "") -> list[int]:
        """The ids of image files: those of the file, and numbers that it does not use for images without a box.

        ValueError if it has no box for any of them, one name means several of its images, or several mean one.
        """
        keys = [self._key(name, folder) for name in names]
        for key, times in collections.Counter(keys).items():
            if key is not None and times > 1:
                several = ", ".join(repr(name) for name, its in zip(names, keys, strict=True) if its == key)
                raise ValueError(f"{self.path}: image {key!r} could be each of {several}; keep one of them")
        self._check_found(keys, names)
        taken = {key for key in (*self._boxes, *(number for _, number in self._names)) if isinstance(key, int)}
        others = iter(number_images([n for n, key in zip(names, keys, strict=True) if not is_int(key)], taken))
        ids = [key if isinstance(key, int) else next(others) for key in keys]
        self._keys = dict(zip(ids, keys, strict=True))
        if without := [name for name, key in zip(names, keys, strict=True) if key not in self._boxes]:
            self.notes.append(f"{self.path}: no box for {len(without)} of {len(names)} images, as {without[0]!r}")
        return ids

    def _key(self, name: str, folder: str) -> int | str | None:
        found: set[Any] = set()
        if not self._by_number:
            found = self._index.find(name, folder)
        if not self._by_number and not self._names:
            found |= self._index.find(os.path.splitext(name)[0], folder)
        if self._by_number or not self._names:
            found |= {number_of(name, at_end=self._by_number)} & set(self._boxes)
        if len(found) > 1:
            ids = sorted(found, key=str)
            raise ValueError(
                f"{self.path}: lists {name!r} under the ids {ids}; if they are of several folders, start --input higher"
            )
        return found.pop() if found else None

    def _check_found(self, keys: Iterable, names: Sequence[str]) -> None:
        if set(keys) & set(self._boxes):
            return
        if not self._boxes:
            why = f"none can be used: {self._unused}"
        elif any(key is not None for key in keys):
            why = f"it lists them without one of category {self.category_id}"
        else:
            known = [name for name, _ in self._names] or list(map(str, self._boxes))
            what = "file_name" if self._names and not self._by_number else "image_id"
            why = (
                f"{names[0]!r} is no {what} of it, closest: {', '.join(map(repr, closest(names[0], known))) or 'none'}"
            )
            way = "" if self._by_number else ", or --match=number: image_id is the number that ends a name"
            why += f"; list images with id and file_name there{way}"
        raise ValueError(f"{self.path}: has no box for any of the images; {why}")

    def check_frames(self, count: int) -> None:
        """As BoxSource. An `image_id` is a frame; where the file lists images, their names end in it."""
        if self._names:
            frames = {number_of(name, at_end=True): number for name, number in self._names}
            if len(frames) < len(self._names) or None in frames or 0 not in frames:
                shown = ", ".join(repr(name) for name, _ in self._names[:3])
                raise ValueError(f"{self.path}: names of a video's images must end in the frame, from 0; got {shown}")
            self._keys = {frame: number for frame, number in frames.items() if frame is not None}
        found = set(self._keys.values() if self._keys else range(count) if count else self._boxes) & set(self._boxes)
        if not found:
            why = f", 0 to {count - 1}" if self._boxes and count else f"; none can be used: {self._unused}"
            raise ValueError(f"{self.path}: has no box for any of the frames{why}")
        if count and not self._keys:
            left = [key for key in self._boxes if key not in found]
            self.problems += [f"{self.path}: image_id {key!r} is no frame, 0 to {count - 1}" for key in left[:3]]

    def of(self, image_id: int, pixels: np.ndarray | None = None) -> list[list[float]]:
        """The boxes that the file has for this id; of the pixels the size is looked at, for `doubts`."""
        key = image_id if self._keys is None else self._keys.get(image_id)
        found = [] if key is None else self._boxes.get(key, [])
        if pixels is not None:
            self._seen.update(seen_boxes(found, pixels.shape[1::-1]))
        return found

    def doubts(self) -> list[str]:
        """As BoxSource: boxes in 0..1, or that look like corners."""
        return [f"{self.path}: {text}" for text in doubts(self._seen, 0, 0, "stored")]
