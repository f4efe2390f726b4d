"""Ultralytics' YOLO-pose sets: `data.yaml`, and a text file of labels beside every image, as COCO's format.

A line holds the class, the box's centre, width and height, and the joints, all as shares of the upright image's sides;
a joint is x y, or x y v with v as in COCO (Ultralytics' documentation of pose data sets). Without v a joint is labelled
unless a coordinate is negative, as there, or both are 0 (ours).
"""

import dataclasses
import os
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml

from dpose_jax.data.coco_format import Audit, is_int
from dpose_jax.data.image_files import ImageFolder, parts, read_file, walk_files
from dpose_jax.pose.joint_names import suggested
from dpose_jax.pose.joint_sets import COCO, JointSet
from dpose_jax.workdir.files import placed

SPLITS = ("train", "val", "test")
MALFORMED = (
    "image_unreadable", "label_without_image", "label_unreadable",
    "line_columns", "line_numbers", "line_class", "line_box", "line_joints", "line_visibility",
)  # fmt: skip
NOTED = ("image_without_labels", "label_of_two_images", "line_repeated", "line_like_corners", "image_exif_rotated")
_NO_IMAGES = (".txt", ".json", ".yaml", ".yml", ".cache", ".csv", ".md", ".npy", ".xml", ".zip")
NAMED = 100  # places of a rule
_MOST_JOINTS = 1000
_SLACK = 0.01  # of a box beyond the image, as rounding leaves it
_FURTHEST = 2.0  # of a joint: what lies beyond is no share of the image's sides but pixels


@dataclasses.dataclass(frozen=True)
class YoloSet:
    """What `data.yaml` says."""

    file: str
    root: str  # the folder to which image names are relative
    splits: dict[str, list[str]]  # image files, by split
    named: dict[str, list[str]]  # folders, lists and images as a split names them
    names: dict[int, str]  # of the classes
    joint_set: JointSet
    dims: int  # numbers of a joint: 2, or 3 with visibility
    notes: list[str]  # what to check in the joint set
    moved: dict[str, str]  # where files are that the set names at another place, by that name


def read_yolo(file: str) -> YoloSet:
    """Reads a `data.yaml`, and lists the images of its splits.

    Raises FileNotFoundError, or ValueError that names the file and the field, if there is no such file or folder, or a
    field is missing or malformed.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"--yolo={file!r}: no such file; it must be the data.yaml of the set")
    try:
        facts = yaml.safe_load(read_file(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: such as month 13
        raise ValueError(f"{file}: not YAML: {' '.join(str(error).split()):.300}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{file}: must hold fields such as train, val and kpt_shape, got {type(facts).__name__}")
    shape = facts.get("kpt_shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(map(is_int, shape)):
        raise ValueError(f"{file}: kpt_shape={shape!r:.80}: must be [joints, 2 or 3]; is this a set for detection?")
    if not 1 <= shape[0] <= _MOST_JOINTS or shape[1] not in (2, 3):
        raise ValueError(f"{file}: kpt_shape={shape!r:.80}: must be [1 to {_MOST_JOINTS}, 2 or 3]")
    names = _class_names(facts.get("names"), file)
    joint_set, notes = _joint_set(facts, shape[0], file)
    moved: dict[str, str] = {}
    named: dict[str, list[str]] = {split: [] for split in SPLITS}
    splits = {split: images for split in SPLITS if (images := _images(facts, split, file, moved, named[split]))}
    if "train" not in splits:
        raise ValueError(f"{file}: train={facts.get('train')!r}: must name a folder of images, a list of files or both")
    # A name outside of the set's folder, as with an absolute path, is relative to what all images share.
    common = os.path.commonpath([os.path.dirname(image) for images in splits.values() for image in images])
    folder = os.path.dirname(os.path.abspath(file))
    root = folder if os.path.commonpath([folder, common]) == folder else common
    return YoloSet(file, root, splits, named, names, joint_set, shape[1], notes, moved)


def _class_names(names: Any, file: str) -> dict[int, str]:
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(is_int(number) and number >= 0 for number in names):
        raise ValueError(f"{file}: names={names!r:.80}: must be a list of names, or names by number")
    return {number: str(name) for number, name in names.items()}


def _joint_set(facts: dict, count: int, file: str) -> tuple[JointSet, list[str]]:
    order, names, pairs = facts.get("flip_idx"), facts.get("kpt_names"), None
    if order is not None:
        if not isinstance(order, list) or not all(map(is_int, order)) or sorted(order) != list(range(count)):
            raise ValueError(f"{file}: flip_idx={order!r:.80}: must hold each of 0..{count - 1} once (kpt_shape)")
        if any(order[order[j]] != j for j in range(count)):
            raise ValueError(f"{file}: flip_idx={order!r:.80}: must swap pairs; position i of it is i's partner")
        pairs = tuple((j, order[j]) for j in range(count) if j < order[j])
    by_class = list(names.values()) if isinstance(names, dict) else names
    if isinstance(by_class, list) and by_class and isinstance(by_class[0], list):
        names = by_class[0]  # kpt_shape is that of all classes
    like_coco = order is not None and tuple(order) == COCO.flip_order
    if names is None:
        names = COCO.joints if like_coco else [f"joint_{j}" for j in range(count)]
    if not isinstance(names, list | tuple) or len(names) != count:
        raise ValueError(f"{file}: kpt_names={names!r:.80}: must be {count} names of joints (kpt_shape)")
    names = tuple(map(str, names))
    if names == COCO.joints and pairs in (None, COCO.flip_pairs):
        assumed = (
            []
            if facts.get("kpt_names")
            else ["joints: taken for COCO's, by kpt_shape and flip_idx; there are no kpt_names"]
        )
        return COCO, assumed
    stem = os.path.splitext(os.path.basename(file))[0]
    with placed(f"{file}: kpt_names"):
        return suggested(stem, names, (), pairs)


def _images(facts: dict, split: str, file: str, moved: dict[str, str], named: list[str]) -> list[str]:
    """The image files of a split, absolute, in the order of their names; `named` gets the folders and lists of it."""
    given = facts.get(split)
    found: list[str] = []
    for entry in given if isinstance(given, list) else [given]:
        if entry is None or entry == "":
            continue
        place = _place(entry, facts.get("path"), split, file, moved)
        named.append(place)
        if os.path.isdir(place):
            for folder, names in walk_files(place):
                found += [os.path.join(folder, name) for name in names if _may_be_image(name)]
        elif not place.endswith(".txt"):
            found.append(place)
        else:
            for line in read_file(place).decode("utf-8-sig", "replace").splitlines():
                if line.strip():
                    found.append(_place(line.strip(), facts.get("path"), split, file, moved, os.path.dirname(place)))
        if not found:
            raise ValueError(f"{file}: {split}={entry!r}: no image in {place}")
    return sorted(dict.fromkeys(found))


def _may_be_image(name: str) -> bool:
    return not name.startswith(".") and not name.lower().endswith(_NO_IMAGES)


def _place(entry: Any, path: Any, split: str, file: str, moved: dict[str, str], beside: str = "") -> str:
    """Where a folder or file of `data.yaml` is; the `path` in it is often that of another machine.

    What is not there at all is the longest tail of two or more parts that is there, which joins `moved`.
    """
    if not isinstance(entry, str):
        raise ValueError(f"{file}: {split}={entry!r:.80}: must be text, or a list of texts")
    folder = os.path.dirname(os.path.abspath(file))
    bases = [os.path.join(folder, path)] if isinstance(path, str) else []
    bases += [base for base in (folder, os.path.dirname(folder), beside) if base]
    # Roboflow writes ../train/images for what lies in train/images.
    names = [entry, entry[3:]] if entry.startswith("../") else [entry]
    for base in bases:
        for name in names:
            place = os.path.normpath(os.path.join(base, name.replace("\\", "/")))
            if os.path.exists(place):
                return place
    tail = parts(entry)
    for start in range(1, len(tail) - 1):
        for base in bases[-3:]:
            if ".." not in tail[start:] and os.path.exists(place := os.path.join(base, *tail[start:])):
                moved[entry] = place
                return place
    tried = ", ".join(dict.fromkeys(repr(os.path.normpath(os.path.join(base, entry))) for base in bases))
    raise FileNotFoundError(f"{file}: {split}: no such file or folder: {tried}")


def to_coco(yolo: YoloSet, split: str) -> tuple[dict, Audit]:
    """A split in COCO's keypoint format, and the counts by MALFORMED and NOTED with their first places, `file:line`.

    Ids count from 1, in the order of the images' names; a category's id is its class plus 1. Images without labels are
    kept. Malformed images and lines are left out. Raises ValueError if no image has a label file.
    """
    audit, store = Audit(yolo.file, lines=0, names=NAMED), ImageFolder(yolo.root, upright=True)
    images, annotations, label_files = list[dict](), list[dict](), set[str]()
    listings: dict[str, dict[str, str]] = {}
    for file in yolo.splits[split]:
        name, header = os.path.relpath(file, yolo.root), None
        if (header := store.header(name)) is None:
            audit.bad("image_unreadable", file)
            continue
        if header.orientation != 1:
            audit.note("image_exif_rotated", file)
        width, height = header.upright_size
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        label = _on_disk(label_file(file), listings)
        if label in label_files:
            audit.note("label_of_two_images", f"{label}: also of {file}")
        label_files.add(label)
        if not os.path.isfile(label):
            audit.note("image_without_labels", file)
            continue
        for person in _persons(label, yolo, (width, height), audit):
            annotations.append({"id": len(annotations) + 1, "image_id": len(images), "iscrowd": 0} | person)
    if audit.counts["image_without_labels"] == len(images):
        raise ValueError(f"{yolo.file}: {split}: no image has labels, such as {label_file(yolo.splits[split][0])!r}")
    for label in _lost_labels(yolo, split, listings):
        audit.bad("label_without_image", label)
    joints = {"keypoints": list(yolo.joint_set.joints), "skeleton": [[a + 1, b + 1] for a, b in yolo.joint_set.limbs]}
    categories = [{"id": number + 1, "name": name} | joints for number, name in sorted(yolo.names.items())]
    return {"images": images, "annotations": annotations, "categories": categories}, audit


def _lost_labels(yolo: YoloSet, split: str, listings: dict[str, dict[str, str]]) -> list[str]:
    """The label files without an image in any split: beside the labels of this one, and below those of its folders.

    Below a folder of images that holds labels too, any text may lie.
    """
    known = {name: {_on_disk(label_file(image), listings) for image in yolo.splits[name]} for name in yolo.splits}
    beside = {os.path.dirname(label) for label in known[split]}
    for folder in filter(os.path.isdir, yolo.named[split]):
        labels = os.path.dirname(label_file(os.path.join(folder, "any")))
        beside.update(place for place, _ in walk_files(labels) if labels != folder)
    found = (os.path.join(place, name) for place in filter(os.path.isdir, beside) for name in os.listdir(place))
    lost = {label for label in found if label.endswith(".txt") and os.path.basename(label) != "classes.txt"}
    return sorted(lost.difference(*known.values(), *yolo.named.values()))


def label_file(image: str) -> str:
    """The labels of an image: `labels` in place of the last folder `images`, or beside the image; ends in .txt."""
    folders = os.path.splitext(image)[0].split(os.sep)
    if "images" in folders[:-1]:
        last = len(folders) - 2 - folders[-2::-1].index("images")
        folders[last] = "labels"
    return os.sep.join(folders) + ".txt"


def _on_disk(label: str, listings: dict[str, dict[str, str]]) -> str:
    """The label file as it is called, maybe in the other Unicode form, or as .TXT."""
    folder, name = os.path.split(label)
    if os.path.exists(label):
        return label
    if folder not in listings:
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        listings[folder] = {_as_called(each): each for each in names}
    return os.path.join(folder, listings[folder].get(_as_called(name), name))


def _as_called(name: str) -> str:
    stem, ending = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + ending.lower()


def _persons(file: str, yolo: YoloSet, size: tuple[int, int], audit: Audit) -> Iterator[dict]:
    try:
        lines = read_file(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        audit.bad("label_unreadable", f"{file}: {error}")
        return
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if line in seen:
            audit.note("line_repeated", f"{file}:{number}")
            continue
        seen.add(line)
        person = _person(line.split(), yolo, size)
        if isinstance(person, dict):
            if _like_corners(line.split(), person, size):
                audit.note("line_like_corners", f"{file}:{number}")
            yield person
        else:
            audit.bad(person[0], f"{file}:{number}: {person[1]}")


def _like_corners(fields: list[str], person: dict, size: tuple[int, int]) -> bool:
    """Whether a box fits image and joints as x1, y1, x2, y2, but sticks out of the image as centre, width, height."""
    x, y, w, h = np.array(person["bbox"]) / (*size, *size)
    x1, y1, x2, y2 = map(float, fields[1:5])
    points = np.array(person["keypoints"]).reshape(-1, 3)
    shares = points[points[:, 2] > 0, :2] / size
    held = ((shares >= np.array([x1, y1]) - _SLACK) & (shares <= np.array([x2, y2]) + _SLACK)).all()
    return bool(held and min(x, y, 1 - x - w, 1 - y - h) < -_SLACK and x1 < x2 and y1 < y2)


def _person(fields: list[str], yolo: YoloSet, size: tuple[int, int]) -> dict | tuple[str, str]:
    """Category, box and joints of a line, or the rule of MALFORMED that it breaks and what is wrong."""
    count, dims = yolo.joint_set.num_joints, yolo.dims
    if len(fields) != 5 + count * dims:
        return "line_columns", f"has {len(fields)} numbers, not {5 + count * dims} (5 + kpt_shape [{count}, {dims}])"
    try:
        values = np.array(list(map(float, fields)))
    except ValueError:
        values = np.array([np.nan])
    if not np.isfinite(values).all():
        return "line_numbers", f"holds what is no finite number: {' '.join(fields):.60}"
    if values[0] not in yolo.names:
        return "line_class", f"class {fields[0]} is none of {', '.join(map(str, yolo.names))}"
    (x, y, w, h), joints = values[1:5], values[5:].reshape(count, dims)
    if not (0 < w <= 1 + _SLACK and 0 < h <= 1 + _SLACK and max(abs(x - 0.5), abs(y - 0.5)) <= 0.5 + _SLACK):
        return "line_box", f"the box must lie in 0..1, got {' '.join(fields[1:5])}"
    if dims == 2:
        hidden = (joints < 0).any(axis=1) | (joints == 0).all(axis=1)
        joints = np.concatenate([joints, np.where(hidden, 0, 2)[:, None]], axis=1)
    visibility = joints[:, 2]
    if not set(visibility.tolist()) <= {0, 1, 2}:
        return "line_visibility", f"visibility must be 0, 1 or 2, got {sorted(set(visibility.tolist()))}"
    joints = joints * (visibility > 0)[:, None]
    if np.abs(joints[:, :2]).max() > _FURTHEST:
        return "line_joints", f"joints must be shares of the image's sides, got up to {np.abs(joints[:, :2]).max():g}"
    box = np.array([x - w / 2, y - h / 2, w, h]) * (*size, *size)
    points = np.concatenate([joints[:, :2] * size, visibility[:, None]], axis=1)
    return {
        "category_id": int(values[0]) + 1,
        "bbox": box.round(3).tolist(),
        "num_keypoints": int((visibility > 0).sum()),
        "keypoints": points.round(3).ravel().tolist(),
    }
