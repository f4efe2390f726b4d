"""Persons from annotations in COCO's keypoint format, checked before the training starts."""

import collections
import concurrent.futures
import functools
import itertools
import os
from typing import NamedTuple

import numpy as np

from dpose_jax.data.categories import PERSON, detected_id
from dpose_jax.data.coco_format import (
    Annotations,
    Audit,
    BadEntryError,
    area_of_box,
    has_area,
    is_int,
    is_number,
    numbers,
)
from dpose_jax.data.doubts import in_percent, like_centre, like_corners, normalised
from dpose_jax.data.exports import as_results
from dpose_jax.data.image_files import ImageFolder, ImageStore
from dpose_jax.data.image_headers import IMAGE_NOTES
from dpose_jax.data.jpeg_parts import Window
from dpose_jax.data.sample import BadRecordError, Person
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.workdir.files import read_json, sha256

_READERS = 16  # threads that read headers
_BOX_SLACK = 0.1  # of a box's longer side: how far out of it joints of people lie


class ListedImage(NamedTuple):
    """An image of an annotation file: its size is (height, width) in pixels, `persons` are indices into the source."""

    file_name: str
    image_id: int
    size: tuple[int, int]
    persons: list[int]


class AnnotatedSource:
    """The persons of one annotation file, a `Source`: arrays and file names, of which workers can be given a copy."""

    def __init__(
        self,
        annotation_file: str,
        images: ImageStore,
        joint_set: JointSet,
        *,
        box_file: str | None = None,
        min_box_score: float = 0.0,
        use_area: bool = True,
        category: str | None = None,
        max_bad_share: float = 0.01,
        training: bool,
        audit: Audit | None = None,
    ):
        """Reads and checks the annotations, in COCO's keypoint format or AI Challenger's own; reads no pixel.

        With a `box_file` the persons are its detected boxes of at least `min_box_score`, without joints; images without
        annotations will then do, such as COCO's image_info_test-dev2017.json. `use_area` is that of `ground_truth`. The
        `audit` counts, of which the caller may have one, also if this raises.
        Raises FileNotFoundError, or ValueError if a file is not in the format, the joint set does not fit (see
        `coco_format.check_joint_names`), more than `max_bad_share` of the records are malformed, or no person is left.
        """
        if training and box_file is not None:
            raise ValueError(f"detections={box_file!r}: training needs annotated persons, not detected boxes")
        self._store, self._path, self.joint_set, self._category = images, annotation_file, joint_set, category
        self._use_area, self.box_file = use_area, box_file
        self._sha256: str | None = None  # of the annotations, once they are read
        self.box_sha256 = None if box_file is None else sha256(box_file)
        audit = audit or Audit(annotation_file)
        coco = self._annotations(audit)
        if box_file is None:
            total, found = len(coco.entries), _annotated(coco, audit)
        else:
            audit.file = box_file
            total, found = _detected(box_file, coco, min_box_score, joint_set.num_joints, audit)
        problem, persons = functools.cache(images.problem), list[Person]()
        for person in found:
            if rule := problem(person.file):
                what = f"id {person.annotation_id}, image {person.image_id}, file {images.place(person.file)!r}"
                hint = images.closest(person.file) if rule == "image_missing" and not audit.counts[rule] else []
                audit.bad(rule, what + (f", closest there: {', '.join(map(repr, hint))}" if hint else ""))
            else:
                persons.append(person)
        sizes = np.array([coco.size(person.image_id) for person in persons])
        if in_percent(np.array([person.bbox for person in persons]), sizes):
            audit.note("looks_in_percent", f"boxes up to {max(max(person.bbox) for person in persons):g}", len(persons))
        self._report = audit.report(total, len(persons), max_bad_share)
        largest = max((person.annotation_id for person in persons), key=abs)
        if abs(largest) >= 2**31:
            raise ValueError(f"{audit.file}: id {largest} does not fit 32 bits; renumber the annotations")
        listed = [coco.images[image_id] for image_id in dict.fromkeys(person.image_id for person in persons)]
        places = {image["id"]: place for place, image in enumerate(listed)}
        self._files = [image["file_name"] for image in listed]
        self._image_ids = np.array([image["id"] for image in listed], np.int64)
        self._sizes = np.array([(image["height"], image["width"]) for image in listed], np.int32)
        self._image_rows = np.array([places[person.image_id] for person in persons], np.int32)
        self._ids = np.array([person.annotation_id for person in persons], np.int64)
        self._boxes = np.array([person.bbox for person in persons], np.float32)
        self._keypoints = np.array([person.keypoints for person in persons], np.float32)
        self._scores = np.array([person.score for person in persons], np.float32)

    def _annotations(self, audit: Audit) -> Annotations:
        """The file's annotations; ValueError if it changed since it was first read, or what `Annotations` raises."""
        annotated, found = self.box_file is None, sha256(self._path)
        if found != (self._sha256 or found):
            what = "persons and ground truth would be of two files; the same command starts anew with this one"
            raise ValueError(f"{self._path}: changed while the run was going on: {what}")
        self._sha256 = found
        return Annotations(self._path, self.joint_set, audit, self._store, self._category, annotated=annotated)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Person:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        row = self._image_rows[index]
        image_id, file = int(self._image_ids[row]), self._store.place(self._files[row])
        score = float(self._scores[index])
        return Person(int(self._ids[index]), image_id, file, self._boxes[index], self._keypoints[index], score)

    def read_image(self, index: int) -> np.ndarray:
        """As Source; BadRecordError if the file cannot be decoded or has another size than annotated."""
        return self.read_part(index, None)

    def read_part(self, index: int, window: Window | None) -> np.ndarray:
        """As `sample.read_part`."""
        try:
            return self._decode(index, window)
        except (OSError, ValueError) as error:
            person = self[index]
            raise BadRecordError(f"{person.file} (id {person.annotation_id}): {error}") from error

    def _decode(self, index: int, window: Window | None) -> np.ndarray:
        row = self._image_rows[index]
        return self._store.decode(self._store.read(self._files[row]), self._sizes[row], window)

    def images(self, *, with_empty: bool) -> list[ListedImage]:
        """The images in the order in which persons name them; `with_empty` those without persons follow."""
        persons: list[list[int]] = [[] for _ in self._files]
        for index, row in enumerate(self._image_rows.tolist()):
            persons[row].append(index)
        found = list(map(ListedImage, self._files, self._image_ids.tolist(), map(tuple, self._sizes.tolist()), persons))
        if with_empty:
            known = set(self._files)
            for image in self._annotations(Audit(self._path, lines=0)).images.values():
                name = image["file_name"]
                if name not in known and not self._store.problem(name):
                    known.add(name)
                    found.append(ListedImage(name, image["id"], (image["height"], image["width"]), []))
        return found

    def ground_truth(self) -> dict:
        """The split as a COCO dict, read anew: every well-formed annotation, crowds and persons without joints too.

        `area` is positive: the annotation's if `use_area` and it has one, see `has_area`, else `area_of_box`. The
        category is the file's, as in the results. `num_keypoints` is kept where given.
        """
        coco, kept = self._annotations(Audit(self._path, lines=0)), []
        for entry, joints, box, _ in coco.well_formed():
            area = float(entry["area"]) if self._use_area and has_area(entry) else area_of_box(box)
            given = entry.get("num_keypoints")
            count = given if is_int(given) else int((joints[:, 2] > 0).sum())
            person = {"id": entry["id"], "image_id": entry["image_id"], "category_id": coco.person.id}
            person |= {"bbox": box, "area": area, "iscrowd": int(bool(entry.get("iscrowd"))), "num_keypoints": count}
            kept.append(person | {"keypoints": joints.ravel().tolist()})
        category = {"id": coco.person.id, "name": coco.person.name or PERSON, "keypoints": list(self.joint_set.joints)}
        return {"images": list(coco.images.values()), "annotations": kept, "categories": [category]}

    def report(self) -> dict[str, int]:
        """Counts by rule: `records` (all), `kept`, then every rule of MALFORMED, LEFT_OUT and NOTED."""
        return dict(self._report)


class FolderSource(AnnotatedSource):
    """The persons of one split of a folder, to which the files and the folder of images are relative."""

    def __init__(
        self,
        root: str,
        annotations: str,
        images: str,
        joint_set: JointSet,
        *,
        detections: str | None = None,
        upright: bool = False,
        **options,
    ):
        self.folder = ImageFolder(root if images == "." else os.path.join(root, images), upright=upright)
        box_file = None if detections is None else os.path.join(root, detections)
        super().__init__(os.path.join(root, annotations), self.folder, joint_set, box_file=box_file, **options)

    def image_notes(self, most: int | None = None) -> tuple[int, dict[str, int]]:
        """Reads the headers of all images with persons, or of `most` spread evenly: their number, and IMAGE_NOTES."""
        files = self._files[:: 1 if most is None else max(1, -(-len(self._files) // most))]
        parts = [files[part::_READERS] for part in range(_READERS)]
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:  # a disk or server answers many at once
            headers = itertools.chain(*pool.map(lambda part: list(map(self.folder.header, part)), parts))
        found = collections.Counter(note for header in headers if header for note in header.notes)
        return len(files), {note: found[note] for note in IMAGE_NOTES}


def _annotated(coco: Annotations, audit: Audit) -> list[Person]:
    """Every person with joints; the box is clipped to the image, joints that are not labelled are zeros."""
    found = []
    for entry, joints, raw, box in coco.well_formed():
        where = f"id {entry['id']}, image {entry['image_id']}"
        if entry.get("area") is not None and not has_area(entry):
            audit.note("area_entry", f"{where}: area {entry['area']!r:.40}")
        if box is None:
            audit.note("crowd" if entry.get("iscrowd") else "no_joints", where)
            continue
        if entry.get("num_keypoints") == 0:
            audit.note("num_keypoints_zero", where)
        image, labelled = coco.images[entry["image_id"]], joints[:, 2] > 0
        size = image["width"], image["height"]
        points = joints[labelled, :2]
        _doubt(audit, raw, size, points, where)
        if off := int((~((points >= -0.5) & (points <= np.array(size) - 0.5)).all(axis=1)).sum()):
            audit.note("joint_outside_image", where, off)
        low, high = np.array(raw[:2]), np.array(raw[:2]) + raw[2:]
        slack = _BOX_SLACK * max(raw[2:])
        if off := int((~((points >= low - slack) & (points <= high + slack)).all(axis=1)).sum()):
            audit.note("joint_outside_box", where, off)
        joints = joints * labelled[:, None]
        found.append(Person(entry["id"], entry["image_id"], image["file_name"], np.array(box), joints))
    return found


def _doubt(audit: Audit, box: list[float], size: tuple[int, int], joints, where: str) -> None:
    if normalised(box, size) or normalised(joints, size):
        audit.note("looks_normalised", f"{where}: bbox {box}")
    if like_centre(box, joints):
        audit.note("looks_like_centre", f"{where}: bbox {box}")
    if like_corners(box, size, joints):
        audit.note("looks_like_corners", f"{where}: bbox {box}, image {size[0]} x {size[1]}")


def _detected(file: str, coco: Annotations, min_score: float, joints: int, audit: Audit) -> tuple[int, list[Person]]:
    """Number of boxes in the file, and those to use, which have their position as id."""
    entries, found = read_json(file), []
    audit.counts.update(as_results(entries, list(coco.images.values())))
    if not isinstance(entries, list):
        raise ValueError(f"{file}: must be a list of detections, as COCO's, got {type(entries).__name__}")
    ids = (entry.get("category_id") for entry in entries if isinstance(entry, dict))
    listed = [category.id for category in coco.categories]
    person = detected_id(collections.Counter(filter(is_int, ids)), coco.person, listed, file)
    for position, entry in enumerate(entries):
        box = numbers(entry.get("bbox"), 4) if isinstance(entry, dict) else None
        usable = box is not None and np.isfinite(box).all() and is_number(entry.get("score"))
        if box is None or not usable or not is_number(entry.get("category_id", person)):
            audit.bad("detection_entry", f"detection {position}: {entry!r:.80}")
        elif entry.get("category_id", person) != person:
            audit.note("other_category", f"detection {position}")
        elif not is_int(entry.get("image_id")) or entry["image_id"] not in coco.images:
            audit.note("detection_without_image", f"detection {position}: image_id {entry.get('image_id')!r:.40}")
        elif entry["score"] < min_score:
            audit.note("low_score", f"detection {position}")
        else:
            try:
                clipped = np.array(coco.clip(box.tolist(), entry["image_id"], f"detection {position}"))
                image = coco.images[entry["image_id"]]
                size = image["width"], image["height"]
                _doubt(audit, box.tolist(), size, np.zeros((0, 2)), f"detection {position}")
                no_joints = np.zeros((joints, 3))
                found.append(Person(position, image["id"], image["file_name"], clipped, no_joints, entry["score"]))
            except BadEntryError as error:
                audit.bad(*error.args)
    return len(entries), found
