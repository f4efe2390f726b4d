"""COCO-format annotation files, checked entry by entry.

Every entry that breaks a rule is left out, counted under the rule's name and logged with file and id.
The rules are ours; the format is COCO's (`person_keypoints_*.json`).
"""

import collections
import math
import re
import sys
from collections.abc import Callable

import numpy as np
from absl import logging

from dpose_jax.data import ai_challenger
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.workdir.files import read_json

ImageSize = Callable[[str], tuple[int, int] | None]

# Left out as malformed: together they may be at most `max_bad_share` of the annotations.
MALFORMED = (
    "image_entry",
    "image_duplicate_id",
    "image_outside_folder",
    "image_missing",
    "annotation_entry",
    "annotation_duplicate_id",
    "annotation_without_image",
    "joint_list",
    "joint_nan",
    "joint_visibility",
    "box_entry",
    "box_empty",
    "box_outside",
    "detection_entry",
)
# Left out because the task does not use them.
LEFT_OUT = ("other_category", "crowd", "no_joints", "detection_without_image", "low_score")
# Kept, but worth knowing.
NOTED = ("area_entry", "box_clipped", "joint_outside_image")

PERSON_CATEGORY = 1  # COCO's, of its detection files too
_LOG_LINES = 20
_MAX_SIDE = 2**31 - 1  # of an image: sizes are kept as int32


def check_joint_names(names: list[str], joint_set: JointSet, file: str) -> None:
    """Checks that a joint set fits the joint names of an annotation file (rule ours).

    The count must be equal. Case, spaces and punctuation do not matter. At each position the names must be
    equal, or the file's name must be one that the set does not know and of the same side (so "head" passes
    for "top_head"). At least half of the names must be equal.

    Raises:
      ValueError: if the set does not fit; names the file, the position and both names.
    """
    given = f"{file}: joint set {joint_set.name!r} does not fit"
    if len(names) != joint_set.num_joints:
        raise ValueError(f"{given}: it has {joint_set.num_joints} joints, the annotations have {len(names)}")
    ours = [_plain(name) for name in joint_set.joints]
    theirs = [_plain(name) for name in names]
    for position, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if our != their and (their in ours or _side(joint_set.joints[position]) != _side(names[position])):
            raise ValueError(
                f"{given}: joint {position} is {joint_set.joints[position]!r}, the annotations call it "
                f"{names[position]!r}; names by position must agree"
            )
    equal = sum(our == their for our, their in zip(ours, theirs, strict=True))
    if 2 * equal < len(ours):
        raise ValueError(f"{given}: only {equal} of {len(ours)} joint names agree, annotations have {names}")


class Audit:
    """Counts records by rule, and logs the first malformed ones."""

    def __init__(self, file: str, lines: int = _LOG_LINES):
        self.file = file
        self._lines = lines
        self.counts: collections.Counter[str] = collections.Counter()

    def bad(self, rule: str, what: str) -> None:
        self.counts[rule] += 1
        if self._lines > 0:
            logging.warning("%s: %s: %s", self.file, rule, what)
            self._lines -= 1

    def check(self, total: int, kept: int, max_bad_share: float) -> None:
        bad = {rule: self.counts[rule] for rule in MALFORMED if self.counts[rule]}
        if sum(bad.values()) > max_bad_share * total:
            raise ValueError(
                f"{self.file}: {sum(bad.values())} malformed records for {total} annotations, more than "
                f"data.max_bad_share={max_bad_share}: {bad}"
            )
        if not kept:
            raise ValueError(f"{self.file}: no person is left of {total} records, left out: {dict(self.counts)}")

    def report(self, total: int, kept: int) -> dict[str, int]:
        return {"records": total, "kept": kept} | {rule: self.counts[rule] for rule in MALFORMED + LEFT_OUT + NOTED}


class Annotations:
    """An annotation file whose outer form is right; its entries are still unchecked."""

    def __init__(self, file: str, joint_set: JointSet, audit: Audit, size: ImageSize, *, annotated: bool = True):
        """Args: without `annotated` a file of images alone will do, such as COCO's image_info_test-dev2017.json."""
        self._audit = audit
        self._joints = joint_set.num_joints
        content = read_coco(file, size)
        if not annotated and isinstance(content, dict) and "annotations" not in content:
            person = {"id": PERSON_CATEGORY, "keypoints": list(joint_set.joints)}
            content = {**content, "annotations": [], "categories": [person]}
        lists = ("images", "annotations", "categories")
        if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
            raise ValueError(f"{file}: must be an object with the lists {lists}, as COCO's person_keypoints files")
        category = _category(content["categories"], file)
        check_joint_names([str(name) for name in category["keypoints"]], joint_set, file)
        self.images: dict[int, dict] = {}
        for entry in content["images"]:
            self._add_image(entry)
        self.category_id = category["id"]
        self.entries = [entry for entry in content["annotations"] if self._same_category(entry)]
        audit.counts["other_category"] += len(content["annotations"]) - len(self.entries)

    def _same_category(self, entry) -> bool:
        return not isinstance(entry, dict) or entry.get("category_id", self.category_id) == self.category_id

    def _add_image(self, entry):
        size = (entry.get("width"), entry.get("height")) if isinstance(entry, dict) else ()
        if not size or not is_int(entry.get("id")) or not isinstance(entry.get("file_name"), str):
            self._audit.bad("image_entry", f"{str(entry)[:80]}")
        elif not all(is_int(side) and 0 < side <= _MAX_SIDE for side in size) or not entry["file_name"]:
            self._audit.bad("image_entry", f"image {entry['id']}: file {entry['file_name']!r}, size {size}")
        elif entry["id"] in self.images:
            self._audit.bad("image_duplicate_id", f"image {entry['id']}, file {entry['file_name']!r}")
        else:
            self.images[entry["id"]] = entry

    def check(self, entry, seen: set[int]):
        """(J, 3) float64 joints and the box [x, y, w, h] of a well-formed entry, else None; a crowd needs no joints."""
        if not isinstance(entry, dict) or not is_int(entry.get("id")) or not is_int(entry.get("image_id")):
            return self._audit.bad("annotation_entry", str(entry)[:80])
        where = f"id {entry['id']}, image {entry['image_id']}"
        if entry["id"] in seen:
            return self._audit.bad("annotation_duplicate_id", where)
        seen.add(entry["id"])
        if entry["image_id"] not in self.images:
            return self._audit.bad("annotation_without_image", where)
        box = numbers(entry.get("bbox"), 4)
        if box is None or not np.isfinite(box).all():
            return self._audit.bad("box_entry", f"{where}: bbox {entry.get('bbox')}")
        crowd = bool(entry.get("iscrowd"))
        joints = numbers(entry.get("keypoints"), 3 * self._joints)
        if joints is None and crowd:
            joints = np.zeros(3 * self._joints)
        if joints is None:
            return self._audit.bad("joint_list", f"{where}: needs {self._joints} x 3 numbers")
        joints = joints.reshape(-1, 3)
        if not np.isfinite(joints).all():
            return self._audit.bad("joint_nan", where)
        if not set(joints[:, 2].tolist()) <= {0, 1, 2}:
            return self._audit.bad("joint_visibility", f"{where}: {sorted(set(joints[:, 2].tolist()))}")
        box = box.tolist()
        if not crowd and joints[:, 2].any() and self.clip(box, entry["image_id"], where, note=False) is None:
            return None
        return joints, box

    def clip(self, box, image_id: int, where: str, note: bool = True):
        """The part of the box inside the image, or None if it is empty; counts what it finds."""
        x, y, w, h = box
        if w <= 0 or h <= 0:
            return self._audit.bad("box_empty", f"{where}: bbox {box}")
        image = self.images[image_id]
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + w, image["width"]), min(y + h, image["height"])
        if right <= left or bottom <= top:
            return self._audit.bad("box_outside", f"{where}: bbox {box}, image {image['width']} x {image['height']}")
        clipped = [left, top, right - left, bottom - top]
        # Adding and subtracting x alone moves the last bit, so a real cut is one that is visible.
        if all(math.isclose(new, old, abs_tol=1e-3) for new, old in zip(clipped, box, strict=True)):
            return box
        if note:
            self._audit.counts["box_clipped"] += 1
        return clipped


def _category(categories: list, file: str) -> dict:
    """The one category that lists joints."""
    found = [c for c in categories if isinstance(c, dict) and isinstance(c.get("keypoints"), list) and c["keypoints"]]
    if len(found) != 1 or not is_int(found[0].get("id")):
        raise ValueError(f"{file}: needs exactly one category with an id and a list of keypoints, found {len(found)}")
    return found[0]


def read_coco(file: str, size: ImageSize):
    """The parsed file; AI Challenger's own format is brought to COCO's.

    `size` gives an image's (width, height) by file name, or None.
    """
    content = read_json(file)
    return ai_challenger.to_coco(content, size) if ai_challenger.is_own_format(content) else content


def numbers(value, count: int) -> np.ndarray | None:
    """float64 numbers (null becomes NaN) if the value is a flat list of that many, else None."""
    if not isinstance(value, list) or len(value) != count:
        return None
    try:
        array = np.asarray(value)
        # A list that holds text becomes an array of text, which astype would parse.
        return array.astype(np.float64) if array.ndim == 1 and array.dtype.kind in "iufO" else None
    except (OverflowError, TypeError, ValueError):  # JSON has integers that no float64 holds
        return None


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _side(name: str) -> str:
    for word in re.split(r"[^a-z0-9]+", name.lower()):
        for side in ("left", "right"):
            if word == side[0] or word.startswith(side):
                return side
    return ""
