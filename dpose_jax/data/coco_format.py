"""COCO-format files, checked entry by entry: one that breaks a rule (ours) is left out, counted and logged."""

import collections
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from absl import logging

from dpose_jax.data import ai_challenger
from dpose_jax.data.categories import PERSON, Category, listed_categories, person_category
from dpose_jax.data.exports import as_coco
from dpose_jax.data.image_files import ImageStore
from dpose_jax.data.sample import PERSON_CATEGORY
from dpose_jax.pose.joint_names import side_and_part
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.typed_fields import LARGEST
from dpose_jax.workdir.files import read_json

# Left out as malformed: together they may be at most `max_bad_share` of the annotations.
MALFORMED = (
    "image_entry", "image_duplicate_id", "image_outside_folder", "image_missing",
    "annotation_entry", "annotation_duplicate_id", "annotation_without_image",
    "joint_list", "joint_nan", "joint_visibility", "box_entry", "box_empty", "box_outside", "detection_entry",
)  # fmt: skip
# Left out because the task does not use them.
LEFT_OUT = ("other_category", "box_only", "crowd", "no_joints", "detection_without_image", "low_score")
# Kept; the first five are read otherwise than written, see `exports`.
NOTED = (
    "id_converted", "image_by_name", "image_renamed", "image_size_read", "box_from_joints",
    "area_entry", "box_clipped", "joint_outside_image", "joint_outside_box", "looks_normalised", "looks_like_corners",
    "looks_like_centre", "looks_in_percent", "num_keypoints_zero",
)  # fmt: skip

# The share of a person's box that the person is taken to cover where no area is annotated (xtcocotools' constant).
BOX_AREA = 0.53
_MAX_SIDE = 2**31 - 1  # of an image: sizes are kept as int32


def is_int(value: Any) -> TypeGuard[int]:
    """Whether a value is an integer, of Python or numpy; a bool is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_image_id(value: Any) -> TypeGuard[int]:
    """Whether a value can be an image's id, from 0 to 2**63 - 1: what the reader, the scorer and its engines take."""
    return is_int(value) and 0 <= value < 2**63


def is_crowd_flag(value) -> bool:
    """Whether a value can be `iscrowd`: 0, 1, or null for 0; a text such as "0" would count as a crowd."""
    return value is None or isinstance(value, bool | int | float) and value in (0, 1)


def is_number(value) -> bool:
    """Whether a value is a number, of Python or numpy, of at most 2**53 in size; a bool is not."""
    numeric = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return numeric and bool(abs(value) <= LARGEST)


def numbers(value, count: int) -> np.ndarray | None:
    """float64 numbers if the value is a flat list of that many, else None; null is NaN, beyond 2**53 infinity."""
    if not isinstance(value, list) or len(value) != count:
        return None
    try:
        array = np.asarray(value)
        # A list that holds text becomes an array of text, which astype would parse.
        if array.ndim != 1 or array.dtype.kind not in "iufO":
            return None
        array = array.astype(np.float64)
        return np.where(np.abs(array) > LARGEST, np.inf, array)
    except (OverflowError, TypeError, ValueError):  # JSON has integers that no float64 holds
        return None


def has_area(entry: dict) -> bool:
    """Whether the `area` of an annotation can be the scale of OKS: a positive number."""
    return is_number(entry.get("area")) and entry["area"] > 0


def area_of_box(box: Sequence[float] | np.ndarray) -> float:
    """The scale of OKS without an area: BOX_AREA w h of x, y, w, h in pixels, or 1 if the box is empty."""
    return float(BOX_AREA * box[2] * box[3]) if min(box[2:]) > 0 else 1.0


def with_joint_list(entry: dict, count: int) -> dict:
    """The annotation; a crowd's with zeros as `keypoints` if they are no list of `count` numbers."""
    if entry.get("iscrowd") and numbers(entry.get("keypoints"), count) is None:
        return entry | {"keypoints": [0] * count}
    return entry


def read_coco(file: str, store: ImageStore | None = None) -> tuple[Any, collections.Counter[str]]:
    """The parsed file as COCO's format, and what was read otherwise than written, see `exports.as_coco`.

    AI Challenger's format is converted; the `store` gives sizes that are not annotated, and the names of its files.
    """
    content = read_json(file)
    if is_own_format(content):
        content = ai_challenger.to_coco(content, store.size if store else lambda _: None)
    return content, as_coco(content, store)


def coco_lists(content: Any, file: str) -> tuple[list, ...]:
    """Images, annotations and categories of a file's content; ValueError that names it if it is no such object."""
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        has = f"an object of {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, dict) else "no object"
        raise ValueError(f"{file}: must be an object with the lists {', '.join(lists)}, as COCO's files, got {has}")
    return tuple(content[name] for name in lists)


def is_own_format(content: Any) -> bool:
    """Whether parsed JSON is in AI Challenger's format, annotations or predictions."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and "keypoint_annotations" in first


def check_joint_names(names: list[str], joint_set: JointSet, file: str) -> None:
    """Raises ValueError if a joint set does not fit the joint names of an annotation file (rule ours).

    Their counts and at least half of the names must be equal; case, spaces and punctuation do not matter. A name that
    differs must be unknown to the set and of the same side ("head" fits "top_head").
    """
    given = f"{file}: joint set {joint_set.name!r} does not fit"
    if len(names) != joint_set.num_joints:
        raise ValueError(f"{given}: it has {joint_set.num_joints} joints, the annotations have {len(names)}")
    ours, theirs = ([re.sub(r"[^a-z0-9]", "", name.lower()) for name in each] for each in (joint_set.joints, names))
    for position, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        our_name, their_name = joint_set.joints[position], names[position]
        if our != their and (their in ours or side_and_part(our_name)[0] != side_and_part(their_name)[0]):
            raise ValueError(
                f"{given}: joint {position} is {our_name!r}, the annotations call it {their_name!r}; names by position "
                "must agree"
            )
    equal = sum(our == their for our, their in zip(ours, theirs, strict=True))
    if 2 * equal < len(ours):
        raise ValueError(f"{given}: only {equal} of {len(ours)} joint names agree, annotations have {names}")


class BadEntryError(ValueError):
    """An entry breaks a rule of MALFORMED: (rule, what the log says of the entry)."""


class Audit:
    """Counts records by rule, keeps the first `names` of each, and logs the first malformed ones: at most `lines`."""

    def __init__(self, file: str, lines: int = 20, names: int = 3):
        self.file, self._lines, self._names = file, lines, names
        self.counts: collections.Counter[str] = collections.Counter()
        self.first: dict[str, list[str]] = {}  # what was said of the first of a rule
        self._worst = ""

    def bad(self, rule: str, what: str) -> None:
        """Counts a malformed record."""
        self.note(rule, what)
        self._worst = self._worst or f"{rule}: {what}"
        if self._lines > 0:
            logging.warning("%s: %s: %s", self.file, rule, what)
            self._lines -= 1

    def note(self, rule: str, what: str, times: int = 1) -> None:
        """Counts a record that is not malformed."""
        self.counts[rule] += times
        first = self.first.setdefault(rule, [])
        if len(first) < self._names:
            first.append(what)

    def report(self, total: int, kept: int, max_bad_share: float) -> dict[str, int]:
        """`records`, `kept` and counts by rule; ValueError if more than `max_bad_share` is malformed, or none kept."""
        bad = {rule: self.counts[rule] for rule in MALFORMED if self.counts[rule]}
        if sum(bad.values()) > max_bad_share * total:
            raise ValueError(
                f"{self.file}: {sum(bad.values())} malformed records for {total} annotations, more than "
                f"data.max_bad_share={max_bad_share}: {bad}; the first: {self._worst}"
            )
        if not kept:
            left = {rule: self.counts[rule] for rule in MALFORMED + LEFT_OUT if self.counts[rule]}
            first = next((f"; the first: {rule}: {self.first[rule][0]}" for rule in left if self.first.get(rule)), "")
            raise ValueError(f"{self.file}: no person is left of {total} records, left out: {left}{first}")
        return {"records": total, "kept": kept} | {rule: self.counts[rule] for rule in MALFORMED + LEFT_OUT + NOTED}


def format_counts(report: dict[str, int]) -> str:
    """The counters of a report that are not zero, as `name count, name count`."""
    return ", ".join(f"{name} {count}" for name, count in report.items() if count and name not in ("records", "kept"))


class Annotation(NamedTuple):
    """A well-formed annotation."""

    entry: dict
    joints: np.ndarray  # (J, 3) float64 x, y in image pixels and visibility; zeros for a crowd without joints
    box: list[float]  # x, y, width, height in image pixels, as in the file
    clipped: list[float] | None  # the box inside the image; None for a crowd and where no joint is labelled


class Annotations:
    """The annotations of a file: its well-formed `images` by id, and the unchecked `entries` of its category."""

    def __init__(
        self,
        file: str,
        joint_set: JointSet,
        audit: Audit,
        store: ImageStore | None,
        category: str | None = None,
        *,
        annotated: bool = True,
    ):
        """Reads the file; unless `annotated` a file of images alone will do, such as COCO's image_info files.

        `category` names the persons', see `person_category`; the `store` is that of `read_coco`. Raises
        FileNotFoundError, or ValueError if the format is neither COCO's nor AI Challenger's, it does not tell the
        category, or the joint set does not fit.
        """
        self._audit, self._joints = audit, joint_set.num_joints
        content, read = read_coco(file, store)
        audit.counts.update(read)
        if only_images := not annotated and isinstance(content, dict) and "annotations" not in content:
            content = {"categories": []} | content | {"annotations": []}
        images, annotations, categories = coco_lists(content, file)
        self.categories = listed_categories(categories)
        if only_images and not self.categories:
            self.categories = [Category(PERSON_CATEGORY, PERSON)]
        self.person = person_category(self.categories, category, file, "data.category")
        if self.person.keypoints:
            check_joint_names(list(self.person.keypoints), joint_set, file)
        elif not only_images:
            raise ValueError(
                f"{file}: needs exactly one category with an id and a list of keypoints, not {self.person}"
            )
        self.images = _checked_images(images, audit)
        self.entries = []
        for entry in annotations:
            fields = entry if isinstance(entry, dict) else {"keypoints": "none"}
            number = fields.get("category_id", self.person.id)
            if is_number(number) and number != self.person.id:
                audit.note("other_category", f"{_where(fields)}: category_id {number!r}, the person is {self.person}")
            elif fields.get("keypoints") in (None, []) and not fields.get("iscrowd"):
                audit.note("box_only", _where(fields))
            else:
                self.entries.append(entry)

    def well_formed(self) -> Iterator[Annotation]:
        """Yields the entries that break no rule of MALFORMED, and counts the others."""
        seen: set[int] = set()
        for entry in self.entries:
            try:
                found = self._checked(entry, seen)
            except BadEntryError as error:
                self._audit.bad(*error.args)
            else:
                yield found

    def _checked(self, entry, seen: set[int]) -> Annotation:
        if not isinstance(entry, dict) or not is_int(entry.get("id")) or not is_int(entry.get("image_id")):
            fields = entry if isinstance(entry, dict) else {}
            wrong = f"id {fields.get('id')!r:.40} and image_id {fields.get('image_id')!r:.40} must be integers"
            raise BadEntryError("annotation_entry", f"{wrong}: {entry!r:.80}")
        where = _where(entry)
        if not is_number(entry.get("category_id", 1)) or not is_crowd_flag(entry.get("iscrowd")):
            kinds = f"category_id {entry.get('category_id')!r}, iscrowd {entry.get('iscrowd')!r}"
            raise BadEntryError("annotation_entry", f"{where}: {kinds}")
        if entry["id"] in seen:
            raise BadEntryError("annotation_duplicate_id", where)
        seen.add(entry["id"])
        if entry["image_id"] not in self.images:
            raise BadEntryError("annotation_without_image", where)
        box = numbers(entry.get("bbox"), 4)
        if box is None or not np.isfinite(box).all():
            raise BadEntryError("box_entry", f"{where}: bbox {entry.get('bbox')}")
        crowd = bool(entry.get("iscrowd"))
        joints = numbers(with_joint_list(entry, 3 * self._joints).get("keypoints"), 3 * self._joints)
        if joints is None:
            raise BadEntryError(
                "joint_list", f"{where}: needs {self._joints} x 3 numbers, {_of_list(entry.get('keypoints'))}"
            )
        joints = joints.reshape(-1, 3)
        if not np.isfinite(joints).all():
            place = int(np.flatnonzero(~np.isfinite(joints).all(axis=1))[0])
            raise BadEntryError(
                "joint_nan", f"{where}: joint {place} is {entry['keypoints'][3 * place : 3 * place + 3]!r:.60}"
            )
        visibility = set(joints[:, 2].tolist())
        if not visibility <= {0, 1, 2}:
            raise BadEntryError("joint_visibility", f"{where}: must be 0, 1 or 2, got {sorted(visibility)}")
        is_person = not crowd and bool(joints[:, 2].any())
        clipped = self.clip(box.tolist(), entry["image_id"], where) if is_person else None
        return Annotation(entry, joints, box.tolist(), clipped)

    def size(self, image_id: int) -> tuple[int, int]:
        """(height, width) of an image, in pixels."""
        return self.images[image_id]["height"], self.images[image_id]["width"]

    def clip(self, box: list[float], image_id: int, where: str) -> list[float]:
        """The part of a box inside its image, counted if cut; raises BadEntryError if nothing is left."""
        x, y, w, h = box
        if w <= 0 or h <= 0:
            raise BadEntryError("box_empty", f"{where}: bbox {box}")
        image = self.images[image_id]
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + w, image["width"]), min(y + h, image["height"])
        if right <= left or bottom <= top:
            raise BadEntryError("box_outside", f"{where}: bbox {box}, image {image['width']} x {image['height']}")
        clipped = [left, top, right - left, bottom - top]
        # Adding and subtracting x alone changes the last bit, so smaller differences are no cut.
        if all(math.isclose(new, old, abs_tol=1e-3) for new, old in zip(clipped, box, strict=True)):
            return box
        self._audit.note("box_clipped", where)
        return clipped


def _of_list(value: Any) -> str:
    """What a value is that is no list of so many numbers."""
    if not isinstance(value, list):
        return f"got {value!r:.40}"
    odd = next((each for each in value if type(each) not in (int, float)), None)
    return f"got {len(value)} entries" + (f", among them {odd!r:.40}" if odd is not None else "")


def _where(entry: dict) -> str:
    return f"id {entry.get('id')!r:.40}, image {entry.get('image_id')!r:.40}"


def _checked_images(entries: list, audit: Audit) -> dict[int, dict]:
    """The well-formed entries by id; the others are counted."""
    found: dict[int, dict] = {}
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {}
        name, number, wrong = fields.get("file_name"), fields.get("id"), ""
        for side in ("width", "height"):
            if not is_int(fields.get(side)) or not 0 < fields[side] <= _MAX_SIDE:
                wrong = f"{side} {fields.get(side)!r:.40}, which must be a positive integer"
        if not isinstance(name, str) or not name:
            wrong = f"file_name {name!r:.40}, which must be text"
        if not is_image_id(number):
            wrong = f"id {number!r:.40}, which must be an integer from 0 to 2**63 - 1"
        if wrong or not is_image_id(number):
            audit.bad("image_entry", f"has the {wrong}: {entry!r:.80}")
        elif number in found:
            audit.bad("image_duplicate_id", f"image {number}, file {name!r}")
        else:
            found[number] = fields
    return found
