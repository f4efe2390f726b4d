"""Ground truth and results of an evaluation, checked once and held as arrays."""

import array
import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterable
from math import hypot
from operator import itemgetter

import numpy as np

from dpose_jax.data.categories import closest
from dpose_jax.data.coco_format import area_of_box, is_crowd_flag, is_image_id, is_int, is_number, with_joint_list
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.typed_fields import LARGEST

_LISTS = ("images", "categories", "annotations")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What every metric reads; made by `check_inputs`.

    The G annotations hold `id` (from 1), `image_id`, `category_id`, `bbox`, `area` (the scale of OKS), `iscrowd`,
    `num_keypoints` and `keypoints`; the P results at least `image_id`, `category_id`, `keypoints` and `score`, and all
    or none of them `bbox`.
    """

    joint_set: JointSet  # of J joints
    images: list[dict]  # as in the ground truth
    categories: list[dict]  # as in the ground truth
    annotations: list[dict]
    truth: np.ndarray  # (G, J, 3) float64, x and y in image pixels and visibility 0, 1 or 2
    results: list[dict]

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """(P, J, 3) float64, x and y in image pixels and a third number that no metric reads."""
        return _joints(self.results, self.joint_set)

    @property
    def boxes(self) -> np.ndarray:
        """(G, 4) float64 x, y, width, height of the annotated persons."""
        return np.array([a["bbox"] for a in self.annotations], np.float64).reshape(-1, 4)

    @property
    def areas(self) -> np.ndarray:
        """(G,) float64 square pixels."""
        return np.array([a["area"] for a in self.annotations], np.float64)

    def by_image(self) -> Collection[tuple[list[int], list[int]]]:
        """(indices of annotations, indices of results) of every image, in the images' order."""
        members: dict = {image["id"]: ([], []) for image in self.images}
        for side, entries in enumerate((self.annotations, self.results)):
            for i, entry in enumerate(entries):
                members[entry["image_id"]][side].append(i)
        return members.values()


def check_inputs(
    ground_truth: dict,
    results: list[dict],
    joint_set: JointSet,
    *,
    use_area: bool = True,
    names: tuple[str, str] = ("ground truth", "results"),
) -> Inputs:
    """Checks both sides of an evaluation; the arguments are left as they are.

    The ground truth is a COCO `person_keypoints` dict; `iscrowd` and `num_keypoints` may be absent, `area` where it is
    not used, and `keypoints` of crowds, see `with_joint_list`. Results have `image_id`, `category_id`, `keypoints`
    (list of 3J numbers) and `score`; there may be none. The scale of OKS is the annotation's `area` with `use_area`,
    otherwise `area_of_box`.

    Raises ValueError if an entry lacks a field, has the wrong number of joints, holds what is no number of at most
    2**53 in size, repeats an id, or names an unknown image or category. It names the entry, and its side by `names`,
    such as the files.
    """
    if not isinstance(ground_truth, dict) or not all(isinstance(ground_truth.get(key), list) for key in _LISTS):
        raise ValueError(f"{names[0]}: must be an object with the lists {', '.join(_LISTS)}, as COCO's files")
    if not isinstance(results, list):
        raise ValueError(f"{names[1]}: must be a list, as COCO's result files, got {type(results).__name__}")
    images, categories, annotations = (ground_truth[key] for key in _LISTS)
    known = _Known(joint_set, _ids(images, f"{names[0]}: image"), _ids(categories, f"{names[0]}: category"))
    _ids(annotations, f"{names[0]}: annotation")
    annotations = [with_joint_list(entry, 3 * joint_set.num_joints) for entry in annotations]
    fields = ("bbox", "area") if use_area else ("bbox",)
    if not known.fits(annotations, *fields):
        for entry in annotations:
            if problem := known.problem(entry, *fields):
                raise ValueError(f"{names[0]}: annotation {entry['id']}: {problem}")
    if not known.fits(results, "score"):
        for i, result in enumerate(results):
            if problem := known.problem(result, "score"):
                raise ValueError(f"{names[1]}: result {i}: {problem}")
    truth = _joints(annotations, joint_set)
    labelled = (truth[..., 2] > 0).sum(axis=1).tolist()
    plain = [
        {
            "id": number,  # from 1: pycocotools takes id 0 for "unmatched"
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": entry["bbox"],
            "area": float(entry["area"]) if use_area else area_of_box(entry["bbox"]),
            "iscrowd": int(bool(entry.get("iscrowd"))),
            "num_keypoints": given if is_int(given := entry.get("num_keypoints")) and 0 <= given < 2**31 else count,
            "keypoints": entry["keypoints"],
        }
        for number, (entry, count) in enumerate(zip(annotations, labelled, strict=True), start=1)
    ]
    with_box = sum("bbox" in result for result in results)
    # Without all boxes none: the area of a result would otherwise depend on its neighbours. An engine may refuse what
    # else a result holds.
    kept = ("image_id", "category_id", "keypoints", "score", *["bbox"] * (with_box == len(results)))
    if not set().union(*results) <= set(kept):
        results = [{key: result[key] for key in kept} for result in results]
    return Inputs(joint_set, images, categories, plain, truth, results)


def _joints(entries: list[dict], joint_set: JointSet) -> np.ndarray:
    """(N, J, 3) float64 of N checked entries."""
    flat = array.array("d")
    for entry in entries:
        flat.fromlist(entry["keypoints"])
    numbers = np.frombuffer(flat) if flat else np.zeros(0)
    return numbers.reshape(-1, joint_set.num_joints, 3)


def _ids(entries: list, what: str) -> set[int]:
    seen: set[int] = set()
    for i, entry in enumerate(entries):
        number = entry.get("id") if isinstance(entry, dict) else None
        if not is_int(number) or not what.endswith("annotation") and not is_image_id(number):
            rule = "an integer id, 0 to 2**63 - 1" if is_int(number) else "an integer id"
            raise ValueError(f"{what} entry {i}: must be an object with {rule}, got {_cut(entry)}")
        if number in seen:
            raise ValueError(f"{what} {number}: the id comes twice")
        seen.add(number)
    return seen


@dataclasses.dataclass(frozen=True)
class _Known:
    """What entries may name. Annotations need the field `bbox` and their joints' visibility, results a `score`."""

    joint_set: JointSet
    images: set[int]
    categories: set[int]

    def fits(self, entries: list, *fields: str) -> bool:
        """True only if no entry has a problem; looking at each alone takes longer than the evaluation itself."""
        try:
            rows, boxes = [e["keypoints"] for e in entries], [e["bbox"] for e in entries if "bbox" in e]
            images, categories = (list(map(itemgetter(field), entries)) for field in ("image_id", "category_id"))
            return (
                set(images) <= self.images
                and set(categories) <= self.categories
                and {*map(type, images), *map(type, categories)} <= {int}
                and set(map(len, rows)) <= {3 * self.joint_set.num_joints}
                and set(map(len, boxes)) <= {4}
                # A length is at most so large only if all its numbers are; it takes a third of their conversion's time.
                and _within(itertools.starmap(hypot, itertools.chain(rows, boxes)))
                and ("score" not in fields or _within(map(itemgetter("score"), entries)))
                and ("score" not in fields or {*map(type, map(itemgetter("score"), entries))} <= {int, float})
                and ("area" not in fields or all(0 <= e["area"] <= LARGEST for e in entries))
                and ("bbox" not in fields or all(min(box[2:]) >= 0 for box in boxes))
                and ("bbox" not in fields or len(boxes) == len(rows) and _flags(rows) <= {0, 1, 2})
                and {e["iscrowd"] for e in entries if "iscrowd" in e} <= {0, 1, None}
            )
        except (KeyError, OverflowError, TypeError):
            return False

    def problem(self, entry, *fields: str) -> str | None:
        """The first thing that is wrong with an entry, which may be any JSON value; None if nothing is."""
        if not isinstance(entry, dict):
            return f"must be an object, got {_cut(entry)}"
        for field in ("image_id", "category_id", "keypoints", *fields):
            if field not in entry:
                return f"has no {field!r}"
        for field, known in (("image_id", self.images), ("category_id", self.categories)):
            if not is_int(entry[field]) or entry[field] not in known:
                only = f", its persons are {next(iter(known))}" if len(known) == 1 and field == "category_id" else ""
                if field == "image_id":
                    only = f", closest: {', '.join(closest(str(entry[field]), map(str, known))) or 'none'}"
                return f"{field} {_cut(entry[field])}: the ground truth has no such {field[:-3]}{only}"
        where, count, values = f"image {entry['image_id']}", 3 * self.joint_set.num_joints, entry["keypoints"]
        if not isinstance(values, list) or len(values) != count:
            found = len(values) if isinstance(values, list) else type(values).__name__
            return f"{where}: keypoints must be {count} numbers for {self.joint_set.name!r}, got {found}"
        for value in values:
            if not is_number(value):
                return f"{where}: keypoints must be finite numbers, got {_cut(value)}"
        if "bbox" in fields and not _flags([values]) <= {0, 1, 2}:
            return f"{where}: visibility must be 0, 1 or 2, got {sorted(_flags([values]))}"
        box = entry.get("bbox", [0] * 4)
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            return f"{where}: bbox must be 4 finite numbers, got {_cut(box)}"
        if not is_crowd_flag(entry.get("iscrowd")):
            return f"{where}: iscrowd must be 0 or 1, got {entry['iscrowd']!r}"
        if "bbox" in fields and min(box[2:]) < 0:
            return f"{where}: bbox must have no negative width or height, got {_cut(box)}"
        if "score" in fields and not is_number(entry["score"]):
            return f"{where}: score must be a finite number, got {_cut(entry['score'])}"
        if "area" in fields and not (is_number(entry["area"]) and entry["area"] >= 0):
            return f"{where}: area must be a finite number, not negative, got {_cut(entry['area'])}"
        return None


def _within(numbers: Iterable) -> bool:
    """True only if all are at most LARGEST in size. One call: a step in Python for each takes three times as long."""
    return hypot(*numbers) <= LARGEST


def _flags(rows: list[list]) -> set:
    return set().union(*(row[2::3] for row in rows))


def _cut(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
