"""Tells on one screen what is odd about a set: counts, and the first three names of each.

python -m dpose_jax.data.check --config=configs/coco_w32_256x192.py --config.data.root=COCO [--split=val]

Reads annotations, headers of images, and parts of those that may be copies; no pixel. The set may break any rule: the
limit `data.max_bad_share` does not apply. The exit status is 1 if training would refuse a split.
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import os
import sys
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from absl import flags

from dpose_jax.data.coco_dataset import FolderSource
from dpose_jax.data.coco_format import LEFT_OUT, MALFORMED, NOTED, Audit
from dpose_jax.data.datasets import SPLITS, split_files
from dpose_jax.data.image_files import read_file
from dpose_jax.data.sample import Person
from dpose_jax.data.sides import mixed_sides, swapped_pairs
from dpose_jax.pose.joint_names import odd_pairs
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app
from dpose_jax.workdir import recipe_flags

TINY = 32  # pixels, sqrt(w h): COCO labels no joints of smaller persons
_NEAR = 0.02  # of the box's longer side: two persons with all joints so near are one
_THREADS, _PIECE = 16, 4096
# What the rules of this file mean; those of coco_format are explained in docs/data.md.
MEANINGS = {
    "odd_flip_pairs": "flip pair of the joint set that contradicts the joints' names",
    "pair_swapped": "flip pair whose x order contradicts the other pairs: left and right of it are swapped",
    "face_mirrored": "nose and eyes visible, but the left eye is left of the right one: swapped, or mirrored image",
    "sides_mixed": "eyes, ears, shoulders and hips have left and right in different orders",
    "joint_never_labelled": "joint that no person has",
    "tiny_box": f"box below {TINY} px (root of the area)",
    "person_twice": "two persons of an image with the same joints",
    "file_listed_twice": "two images of the file are one file",
    "image_twice": "two files with the same content",
    "image_in_other_split": "file, or one of the same content, that the other split has too",
    "image_unreadable": "header that cannot be read",
    "image_size_differs": "other size than annotated",
    "image_of_several": "file with several pictures; the first is taken",
    "image_exif_rotated": "EXIF orientation; data.orientation decides",
    "image_missing": "no such file",
    "joint_outside_box": "labelled joint out of its box by a tenth of the longer side",
    "joint_outside_image": "labelled joint off the image",
    "crowd": "iscrowd, an ignore region",
    "no_joints": "person without a labelled joint, an ignore region",
    "box_only": "person without keypoints, left out",
    "looks_normalised": "box or joints in 0..1 instead of pixels",
    "looks_like_corners": "box that fits as x1, y1, x2, y2 only",
    "looks_like_centre": "box that holds its joints as centre, width and height only",
    "looks_in_percent": "all boxes in 0..100 of larger images",
    "num_keypoints_zero": "labelled joints beside num_keypoints 0: trained on, ignored by COCO's metrics",
}
Images = dict[str, str]  # a name for reports by the digest of the content


@dataclasses.dataclass(frozen=True)
class Finding:
    """A rule, how often it applies, and the first three places."""

    rule: str
    count: int
    first: list[str]


@dataclasses.dataclass(frozen=True)
class Report:
    """What is odd about a split; `error` is what training would stop with."""

    title: str
    findings: list[Finding]
    error: str = ""

    def __str__(self) -> str:
        lines = [self.title]
        for finding in self.findings:
            meaning = MEANINGS.get(finding.rule, "")
            lines.append(f"{finding.count:8d}  {finding.rule}{': ' if meaning else ''}{meaning}")
            lines += [f"          - {each}" for each in finding.first]
        if not self.findings:
            lines.append("  nothing odd")
        return "\n".join(lines + ([f"  training stops: {self.error}"] if self.error else []))


def check(recipe: Recipe, splits: Iterable[str] = SPLITS) -> list[Report]:
    """Reports on the splits of a folder of images and annotations.

    Raises FileNotFoundError or ValueError if `data.source` is not `folder`, there is no such folder or file, or the
    file is in no known format or does not fit the joint set.
    """
    if recipe.data.source != "folder":
        raise ValueError(f"data.source={recipe.data.source!r}: must be 'folder' to check annotations and images")
    others: Images = {}
    reports = []
    for split in splits:
        report, images = _check_split(recipe, split, others)
        reports.append(report)
        others |= images
    return reports


def _check_split(recipe: Recipe, split: str, others: Images) -> tuple[Report, Images]:
    data, joint_set = recipe.data, recipe.joints
    places = split_files(data, split)
    file = os.path.join(places[0], places[1])
    audit, error = Audit(file, lines=0), ""
    options: dict = {"upright": data.orientation == "upright", "category": data.category, "training": True}
    found: list[Finding] = []
    title, images = f"{split}: {file}", Images()
    try:
        source = FolderSource(*places, joint_set, max_bad_share=float("inf"), audit=audit, **options)
    except ValueError as problem:
        if not sum(audit.counts.values()):  # of another format: nothing to report
            raise
        error = str(problem)
    else:
        report = source.report()
        bad = sum(report[rule] for rule in MALFORMED)
        if bad > data.max_bad_share * report["records"]:
            error = f"{bad} malformed records, more than data.max_bad_share={data.max_bad_share}"
        of_images, images = _of_images(source, data.orientation == "upright", others)
        found = _of_persons([source[index] for index in range(len(source))], joint_set) + of_images
        title += f": {report['kept']} of {report['records']} annotations kept"
    odd = odd_pairs(joint_set)
    first = [Finding("odd_flip_pairs", len(odd), odd[:3])] if odd else []
    rules = [rule for rule in MALFORMED + LEFT_OUT + NOTED if audit.counts[rule]]
    audited = [Finding(rule, audit.counts[rule], audit.first.get(rule, [])) for rule in rules]
    return Report(title, first + audited + found, error), images


def _findings(places: dict[str, list[str]]) -> list[Finding]:
    return [Finding(rule, len(names), names[:3]) for rule, names in places.items() if names]


def _of_persons(persons: list[Person], joint_set) -> list[Finding]:
    joints = np.stack([person.keypoints for person in persons]).astype(np.float64)
    boxes = np.stack([person.bbox for person in persons]).astype(np.float64)
    places: dict[str, list[str]] = defaultdict(list)
    for left, right, share, count in swapped_pairs(joints, boxes[:, 2], joint_set):
        places["pair_swapped"].append(f"{left} and {right}: in {share:.0%} of {count} persons")
    rules = mixed_sides(joints, boxes[:, 2], joint_set)
    rules["tiny_box"] = np.sqrt(boxes[:, 2] * boxes[:, 3]) < TINY
    for rule, applies in rules.items():
        places[rule] = [_where(persons[index]) for index in np.flatnonzero(applies)]
    never = np.flatnonzero(~(joints[..., 2] > 0).any(axis=0))
    places["joint_never_labelled"] = [joint_set.joints[j] for j in never]
    places["person_twice"] = _copies(persons, joints)
    return _findings(places)


def _copies(persons: list[Person], joints: np.ndarray) -> list[str]:
    found: list[str] = []
    of_image: dict[int, list[int]] = defaultdict(list)
    for index, person in enumerate(persons):
        of_image[person.image_id].append(index)
    for a, b in itertools.chain.from_iterable(itertools.combinations(each, 2) for each in of_image.values()):
        apart = np.abs(joints[a, :, :2] - joints[b, :, :2]).max()
        same = ((joints[a, :, 2] > 0) == (joints[b, :, 2] > 0)).all()
        if same and apart <= _NEAR * max(persons[a].bbox[2:]):
            found.append(f"{_where(persons[b])}, as id {persons[a].annotation_id}")
    return found


def _where(person: Person) -> str:
    return f"id {person.annotation_id}, image {person.image_id}, {person.file!r}"


def _of_images(source: FolderSource, upright: bool, others: Images) -> tuple[list[Finding], Images]:
    """Findings on the images with persons, and their digests; `others` are those of another split."""
    listed, places = source.images(with_empty=False), defaultdict[str, list[str]](list)
    names = list(dict.fromkeys(image.file_name for image in listed))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        headers = dict(zip(names, pool.map(source.folder.header, names), strict=True))
        digests = dict(zip(names, pool.map(_digest, map(source.folder.place, names)), strict=True))
    seen: dict[str, int] = {}
    for image in listed:
        path, header = source.folder.place(image.file_name), headers[image.file_name]
        if header is None:
            places["image_unreadable"].append(repr(path))
            continue
        if (size := header.upright_size if upright else header.size) != image.size[::-1]:
            (width, height), (high, wide) = size, image.size
            places["image_size_differs"].append(f"{path!r}: {width} x {height} px, annotated {wide} x {high}")
        if "image_of_several" in header.notes:
            places["image_of_several"].append(repr(path))
        if header.orientation != 1:
            places["image_exif_rotated"].append(f"{path!r}: {header.orientation}")
        if image.file_name in seen:
            places["file_listed_twice"].append(f"images {seen[image.file_name]} and {image.image_id}: {path!r}")
        seen.setdefault(image.file_name, image.image_id)
    own: Images = {}
    for name, digest in digests.items():
        path = source.folder.place(name)
        if digest in own:
            places["image_twice"].append(f"{path!r}, as {own[digest]!r}")
        elif digest in others:
            places["image_in_other_split"].append(f"{path!r}, as {others[digest]!r}")
        if digest:
            own.setdefault(digest, path)
    return _findings(places), own


def _digest(path: str) -> str:
    """A digest of a file's size, start and middle (small files: of all); empty if it cannot be read."""
    try:
        size = os.path.getsize(path)
        if size <= 4 * _PIECE:
            return hashlib.sha256(read_file(path)).hexdigest()
        with open(path, "rb") as file:
            start = file.read(_PIECE)
            file.seek(size // 2)
            return hashlib.sha256(b"%d" % size + start + file.read(_PIECE)).hexdigest()
    except OSError:
        return ""


if __name__ == "__main__":
    CONFIG = recipe_flags.define("A file of configs/.")
    SPLIT = flags.DEFINE_enum("split", None, SPLITS, "Only this split.")
    flags.mark_flag_as_required("config")

    def main():
        reports = check(Recipe.from_config(CONFIG.value), (SPLIT.value,) if SPLIT.value else SPLITS)
        print("\n\n".join(map(str, reports)))
        sys.exit(1 if any(report.error for report in reports) else 0)

    app.run(main)
