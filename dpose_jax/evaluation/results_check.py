"""Ground truth and results of an evaluation, checked once and held as arrays."""

import array
import dataclasses
import functools
import math
import sys
from collections.abc import Collection

import numpy as np

from dpose_jax.pose.joint_sets import JointSet

# The share of a person's box that the person is taken to cover where no area is annotated (xtcocotools' constant).
BOX_AREA = 0.53
_RESULT_FIELDS = ("image_id", "category_id", "keypoints", "score")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What every metric reads; made by `check_inputs`.

    Attributes:
      joint_set: of J joints.
      images: the ground truth's image entries.
      categories: the ground truth's category entries.
      annotations: G annotated persons with COCO's fields alone: `id` (from 1), `image_id`, `category_id`, `bbox`,
        `area` (the scale of OKS), `iscrowd`, `num_keypoints` and `keypoints`.
      truth: (G, J, 3) float64, x and y in image pixels and visibility 0, 1 or 2.
      results: P predicted persons with at least `image_id`, `category_id`, `keypoints` and `score`; `bbox` in all
        or in none.
    """

    joint_set: JointSet
    images: list[dict]
    categories: list[dict]
    annotations: list[dict]
    truth: np.ndarray
    results: list[dict]

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """(P, J, 3) float64, x and y in image pixels and a third number that no metric reads."""
        rows = [result["keypoints"] for result in self.results]
        return _finite_rows(rows, 3 * self.joint_set.num_joints).reshape(-1, self.joint_set.num_joints, 3)

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

    Args:
      ground_truth: COCO `person_keypoints` dict. `iscrowd` and `num_keypoints` may be absent, `area` where it is not
        used, and `keypoints` of crowds.
      results: COCO results: `image_id`, `category_id`, `keypoints` (list of 3J numbers) and `score`; may be empty.
      joint_set: of J joints.
      use_area: the scale of OKS is the annotation's `area`; otherwise 0.53 w h of its box.
      names: of the two sides in errors, such as the files they were read from.

    Raises:
      ValueError: if an entry lacks a field, has the wrong number of joints, holds what is no finite number, repeats
        an id, or names an unknown image or category. Names the side and the entry.
    """
    images, categories, annotations, truth = _check_ground_truth(ground_truth, joint_set, use_area, names[0])
    known = {image["id"] for image in images}, {category["id"] for category in categories}
    _check_results(results, joint_set, *known, names[1])
    with_box = sum("bbox" in result for result in results)
    if with_box not in (0, len(results)):  # the area of a result would otherwise depend on its neighbours
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    return Inputs(joint_set, images, categories, annotations, truth, results)


def _check_ground_truth(ground_truth: dict, joint_set: JointSet, use_area: bool, name: str):
    """`images`, `categories`, `annotations` and `truth` of `Inputs`."""
    lists = ("images", "categories", "annotations")
    if not isinstance(ground_truth, dict) or not all(isinstance(ground_truth.get(key), list) for key in lists):
        raise ValueError(f"{name}: must be an object with the lists {', '.join(lists)}, as COCO's files")
    images, categories, annotations = (ground_truth[key] for key in lists)
    known = _ids(images, f"{name}: image"), _ids(categories, f"{name}: category")
    _ids(annotations, f"{name}: annotation")
    no_joints = {"keypoints": [0] * (3 * joint_set.num_joints)}
    annotations = [{**no_joints, **entry} if entry.get("iscrowd") else entry for entry in annotations]
    try:  # all at once: looking at every entry alone takes longer than the evaluation itself
        truth = _finite_rows([a["keypoints"] for a in annotations], 3 * joint_set.num_joints)
        truth = truth.reshape(-1, joint_set.num_joints, 3)
        boxes = _finite_rows([a["bbox"] for a in annotations], 4)
        areas = _finite([a["area"] for a in annotations]) if use_area else BOX_AREA * boxes[:, 2] * boxes[:, 3]
        good = (areas >= 0).all() and np.isin(truth[..., 2], (0, 1, 2)).all() and _all_known(annotations, *known)
    except (KeyError, OverflowError, TypeError, ValueError):
        good = False
    if not good:
        for entry in annotations:
            problem = _annotation_problem(entry, joint_set, *known, use_area)
            if problem:
                raise ValueError(f"{name}: annotation {entry['id']}: {problem}")
    labelled = (truth[..., 2] > 0).sum(axis=1).tolist()
    plain = [
        {
            "id": number,  # from 1: pycocotools takes id 0 for "unmatched"
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": entry["bbox"],
            "area": area,
            "iscrowd": int(bool(entry.get("iscrowd"))),
            "num_keypoints": given if isinstance(given := entry.get("num_keypoints"), int) and given >= 0 else count,
            "keypoints": entry["keypoints"],
        }
        for number, (entry, area, count) in enumerate(zip(annotations, areas.tolist(), labelled, strict=True), start=1)
    ]
    return images, categories, plain, truth


def _check_results(results: list[dict], joint_set: JointSet, images: set, categories: set, name: str) -> None:
    """Raises for the first bad result, named by its place, from 0."""
    if not isinstance(results, list):
        raise ValueError(f"{name}: must be a list, as COCO's result files, got {type(results).__name__}")
    try:
        rows = [r["keypoints"] for r in results]
        good = not rows or set(map(len, rows)) == {3 * joint_set.num_joints}
        # A sum is finite only if all its numbers are, and takes a third of the time of converting them.
        good = good and all(map(math.isfinite, map(sum, rows))) and _all_known(results, images, categories)
        good = good and all(math.isfinite(r["score"]) for r in results)
        _finite_rows([r["bbox"] for r in results if "bbox" in r], 4)
    except (KeyError, OverflowError, TypeError, ValueError):
        good = False
    if not good:
        for i, result in enumerate(results):
            problem = _result_problem(result, joint_set, images, categories)
            if problem:
                raise ValueError(f"{name}: result {i}: {problem}")


def _finite_rows(rows: list[list], width: int) -> np.ndarray:
    """(N, width) float64; KeyError, TypeError or ValueError unless each is a list of so many finite numbers."""
    flat = array.array("d")
    for row in rows:
        if len(row) != width:
            raise ValueError
        flat.fromlist(row)
    return _finite(flat).reshape(-1, width)


def _finite(values) -> np.ndarray:
    """(N,) float64; TypeError or ValueError unless all are finite numbers."""
    numbers = np.frombuffer(array.array("d", values)) if len(values) else np.zeros(0)
    if not np.isfinite(numbers).all():
        raise ValueError
    return numbers


def _all_known(entries: list[dict], images: set, categories: set) -> bool:
    return {e["image_id"] for e in entries} <= images and {e["category_id"] for e in entries} <= categories


def _ids(entries: list, what: str) -> set[int]:
    seen: set[int] = set()
    for i, entry in enumerate(entries):
        number = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(number, int):
            raise ValueError(f"{what} entry {i}: must be an object with an integer id, got {_cut(entry)}")
        if number in seen:
            raise ValueError(f"{what} {number}: the id comes twice")
        seen.add(number)
    return seen


def _annotation_problem(entry: dict, joint_set: JointSet, images: set, categories: set, use_area: bool) -> str | None:
    fields = ("image_id", "category_id", "keypoints", "bbox", *(["area"] if use_area else []))
    problem = _entry_problem(entry, fields, joint_set, images, categories)
    if problem:
        return problem
    flags = set(entry["keypoints"][2::3])
    if not flags <= {0, 1, 2}:
        return f"visibility must be 0, 1 or 2, got {sorted(flags)}"
    if not _are_numbers(entry["bbox"], 4):
        return f"bbox must be 4 finite numbers, got {_cut(entry['bbox'])}"
    if use_area and not (_is_number(entry["area"]) and entry["area"] >= 0):
        return f"area must be a finite number, not negative, got {_cut(entry['area'])}"
    return None


def _result_problem(entry, joint_set: JointSet, images: set, categories: set) -> str | None:
    if not isinstance(entry, dict):
        return f"must be an object, got {_cut(entry)}"
    problem = _entry_problem(entry, _RESULT_FIELDS, joint_set, images, categories)
    if not problem and not _is_number(entry["score"]):
        problem = f"image {entry['image_id']}: score must be a finite number, got {_cut(entry['score'])}"
    if not problem and "bbox" in entry and not _are_numbers(entry["bbox"], 4):
        problem = f"image {entry['image_id']}: bbox must be 4 finite numbers, got {_cut(entry['bbox'])}"
    return problem


def _entry_problem(entry: dict, fields, joint_set: JointSet, images: set, categories: set) -> str | None:
    missing = [field for field in fields if field not in entry]
    if missing:
        return f"has no {missing[0]!r}"
    for field, known in (("image_id", images), ("category_id", categories)):
        if not isinstance(entry[field], int | np.integer) or entry[field] not in known:
            return f"{field} {_cut(entry[field])}: the ground truth has no such {field[:-3]}"
    count, values = 3 * joint_set.num_joints, entry["keypoints"]
    if not isinstance(values, list) or len(values) != count:
        found = len(values) if isinstance(values, list) else type(values).__name__
        return f"image {entry['image_id']}: keypoints must be {count} numbers for {joint_set.name!r}, got {found}"
    if not _are_numbers(values, count):
        bad = next(value for value in values if not _is_number(value))
        return f"image {entry['image_id']}: keypoints must be finite numbers, got {_cut(bad)}"
    return None


def _are_numbers(values, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(_is_number, values))


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.number) and abs(value) <= sys.float_info.max


def _cut(value) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
