"""Persons from annotations in COCO's keypoint format, checked before the training starts."""

import collections
import os
from typing import NamedTuple

import numpy as np

from dpose_jax.data.coco_format import (
    BOX_AREA,
    Annotations,
    Audit,
    BadEntryError,
    excerpt,
    finite_numbers,
    is_int,
    is_number,
    require_list,
)
from dpose_jax.data.image_files import IMAGE_NOTES, ImageFolder, ImageStore, decode_image
from dpose_jax.data.sample import BadRecordError, Person
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.workdir.files import read_json

_INT32_MAX = 2**31 - 1


class ListedImage(NamedTuple):
    """An image of an annotation file: its size is (height, width) in pixels, `persons` are indices into the source."""

    file_name: str
    image_id: int
    size: tuple[int, int]
    persons: list[int]


class _Row(NamedTuple):
    """A person of the source; the box is clipped to the image, joints that are not labelled are zeros."""

    id: int
    image_id: int
    box: list[float]
    joints: np.ndarray
    score: float


class AnnotatedSource:
    """The persons of one annotation file over a store of images; implements `sample.Source`.

    The source holds arrays and file names only, so that worker processes can be given a copy.

    Attributes:
      box_file: the detected boxes that stand for the persons; None if they are the annotated ones.
    """

    def __init__(
        self,
        annotation_file: str,
        images: ImageStore,
        joint_set: JointSet,
        *,
        box_file: str | None = None,
        min_box_score: float = 0.0,
        use_area: bool = True,
        max_bad_share: float = 0.01,
        training: bool,
    ):
        """Reads and checks the annotations; reads no pixel.

        Args:
          annotation_file: in COCO's keypoint format, or AI Challenger's own; with a `box_file` also a list of images
            without annotations, such as COCO's image_info_test-dev2017.json.
          images: what `file_name` names.
          joint_set: must fit the annotations, see `coco_format.check_joint_names`.
          box_file: detected boxes; the persons are then these (without joints) instead of the annotated ones.
            Not for training.
          min_box_score: detected boxes below it are left out, in [0, 1].
          use_area: `ground_truth` gives the annotation's area where it has one, else BOX_AREA w h.
          max_bad_share: share of the records that may be malformed, in [0, 1].
          training: whether the persons are for training.

        Raises:
          FileNotFoundError: if a folder or file does not exist.
          ValueError: if a file is not in the format, the joint set does not fit, too many records
            are malformed, or no person is left; names the file and the counts.
        """
        if training and box_file is not None:
            raise ValueError(f"detections={box_file!r}: training needs annotated persons, not detected boxes")
        self._images, self._annotation_file, self._joint_set = images, annotation_file, joint_set
        self._use_area, self.box_file = use_area, box_file
        audit = Audit(annotation_file)
        coco = self._annotations(audit)
        if box_file is None:
            total, rows = len(coco.entries), _annotated_rows(coco, audit)
        else:
            audit.file = box_file
            total, rows = _detected_rows(box_file, coco, min_box_score, joint_set.num_joints, audit)
        rows = self._with_image(rows, coco.images, audit)
        audit.check(total, len(rows), max_bad_share)
        self._report = audit.report(total, len(rows))
        self._fill(rows, coco.images, audit.file)

    def _annotations(self, audit: Audit) -> Annotations:
        annotated = self.box_file is None
        return Annotations(self._annotation_file, self._joint_set, audit, self._images.size, annotated=annotated)

    def _with_image(self, rows: list[_Row], images: dict[int, dict], audit: Audit) -> list[_Row]:
        """The rows whose image the store has."""
        names = {row.image_id: images[row.image_id]["file_name"] for row in rows}
        problems = {image_id: self._images.problem(name) for image_id, name in names.items()}
        kept = []
        for row in rows:
            problem = problems[row.image_id]
            if problem is None:
                kept.append(row)
            else:
                audit.bad(problem, f"id {row.id}, image {row.image_id}, file {names[row.image_id]!r}")
        return kept

    def _fill(self, rows: list[_Row], images: dict[int, dict], file: str) -> None:
        ids, image_ids, boxes, keypoints, scores = zip(*rows, strict=True)
        if max(ids) > _INT32_MAX or min(ids) < -_INT32_MAX:
            raise ValueError(f"{file}: id {max(ids, key=abs)} does not fit 32 bits; renumber the annotations")
        unique = list(dict.fromkeys(image_ids))
        position = {image_id: row for row, image_id in enumerate(unique)}
        self._ids = np.array(ids, np.int64)
        self._image_ids = np.array(unique, np.int64)
        self._files = [images[image_id]["file_name"] for image_id in unique]
        self._sizes = np.array([(images[i]["height"], images[i]["width"]) for i in unique], np.int32)
        self._image_rows = np.array([position[image_id] for image_id in image_ids], np.int32)
        self._boxes = np.array(boxes, np.float32)
        self._keypoints = np.array(keypoints, np.float32)
        self._scores = np.array(scores, np.float32)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Person:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        row = self._image_rows[index]
        return Person(
            annotation_id=int(self._ids[index]),
            image_id=int(self._image_ids[row]),
            file=self._images.place(self._files[row]),
            bbox=self._boxes[index],
            keypoints=self._keypoints[index],
            score=float(self._scores[index]),
        )

    def read_image(self, index: int) -> np.ndarray:
        """The image of person `index`, (height, width, 3) uint8 RGB, in stored (EXIF-ignoring) orientation.

        Raises:
          BadRecordError: if the file cannot be read or decoded, is cut short, or has another size than
            its annotation says.
        """
        row = self._image_rows[index]
        where = f"{self._images.place(self._files[row])} (id {self._ids[index]})"
        try:
            image = decode_image(self._images.read(self._files[row]))
            check_size(image, self._sizes[row])
        except (OSError, ValueError) as error:
            raise BadRecordError(f"{where}: {error}") from error
        return image

    def images(self, *, with_empty: bool) -> list[ListedImage]:
        """The images in the order in which persons name them; `with_empty` those without persons follow."""
        persons: list[list[int]] = [[] for _ in self._files]
        for index, row in enumerate(self._image_rows.tolist()):
            persons[row].append(index)
        sizes = map(tuple, self._sizes.tolist())
        found = list(map(ListedImage, self._files, self._image_ids.tolist(), sizes, persons))
        if with_empty:
            known = set(self._files)
            for image in self._annotations(Audit(self._annotation_file, lines=0)).images.values():
                name = image["file_name"]
                if name not in known and not self._images.problem(name):
                    known.add(name)
                    found.append(ListedImage(name, image["id"], (image["height"], image["width"]), []))
        return found

    def ground_truth(self) -> dict:
        """The split as a COCO dict, read anew: every well-formed annotation, crowds and persons without joints too.

        `area` is positive: the annotation's if `use_area` and it has one, else BOX_AREA w h of its box (1 if that
        is not positive). The category has id 1, as the results. `num_keypoints` is kept where given.

        Raises:
          ValueError: if the file is no longer in the format.
        """
        coco = self._annotations(Audit(self._annotation_file, lines=0))
        kept = []
        for entry, joints, box, _ in coco.well_formed():
            area = BOX_AREA * box[2] * box[3] if min(box[2:]) > 0 else 1.0
            given = entry.get("num_keypoints")
            kept.append(
                {
                    "id": entry["id"],
                    "image_id": entry["image_id"],
                    "category_id": 1,
                    "bbox": box,
                    "area": float(entry["area"] if self._use_area and _has_area(entry) else area),
                    "iscrowd": int(bool(entry.get("iscrowd"))),
                    "num_keypoints": given if is_int(given) else int((joints[:, 2] > 0).sum()),
                    "keypoints": joints.ravel().tolist(),
                }
            )
        category = {"id": 1, "name": "person", "keypoints": list(self._joint_set.joints)}
        return {"images": list(coco.images.values()), "annotations": kept, "categories": [category]}

    def report(self) -> dict[str, int]:
        """Counts by rule: `records` (all), `kept`, then every rule of MALFORMED, LEFT_OUT and NOTED."""
        return dict(self._report)


class FolderSource(AnnotatedSource):
    """The persons of one split of a folder of images with an annotation file."""

    def __init__(
        self, root: str, annotations: str, images: str, joint_set: JointSet, *, detections: str | None = None, **options
    ):
        """Args: the folder of one data set; files and the images' folder relative to it; see AnnotatedSource."""
        self.folder = ImageFolder(os.path.join(root, images))
        box_file = None if detections is None else os.path.join(root, detections)
        super().__init__(os.path.join(root, annotations), self.folder, joint_set, box_file=box_file, **options)

    def image_notes(self) -> dict[str, int]:
        """Images with persons by each of IMAGE_NOTES, from their headers; reads the beginning of every file."""
        headers = [self.folder.header(name) for name in self._files]
        found = collections.Counter(note for header in headers if header for note in header.notes)
        return {note: found[note] for note in IMAGE_NOTES}


def check_size(image: np.ndarray, size) -> None:
    """Raises ValueError if an image (h, w, 3) has not the (height, width) that its annotation says."""
    if image.shape[:2] != tuple(size):
        found = f"{image.shape[1]} x {image.shape[0]}"
        raise ValueError(f"the image is {found} px, its annotation says {size[1]} x {size[0]}")


def _has_area(entry: dict) -> bool:
    return is_number(entry.get("area")) and entry["area"] > 0


def _annotated_rows(coco: Annotations, audit: Audit) -> list[_Row]:
    """Every person with joints."""
    rows = []
    for entry, joints, _, box in coco.well_formed():
        audit.counts["area_entry"] += entry.get("area") is not None and not _has_area(entry)
        if box is None:
            audit.counts["crowd" if entry.get("iscrowd") else "no_joints"] += 1
            continue
        image, labelled = coco.images[entry["image_id"]], joints[:, 2] > 0
        inside = (joints[:, :2] >= -0.5) & (joints[:, :2] <= np.array([image["width"], image["height"]]) - 0.5)
        audit.counts["joint_outside_image"] += int((labelled & ~inside.all(axis=1)).sum())
        rows.append(_Row(entry["id"], entry["image_id"], box, joints * labelled[:, None], 1.0))
    return rows


def _detected_rows(file: str, coco: Annotations, min_score: float, joints: int, audit: Audit) -> tuple[int, list[_Row]]:
    """Number of boxes in the file, and those to use, which have their position as id."""
    entries = require_list(read_json(file), file)
    rows = []
    for position, entry in enumerate(entries):
        box = finite_numbers(entry.get("bbox"), 4) if isinstance(entry, dict) else None
        if box is None or not is_number(entry.get("score")):
            audit.bad("detection_entry", f"detection {position}: {excerpt(entry)}")
        elif entry.get("category_id") != coco.category_id:
            audit.counts["other_category"] += 1
        elif not is_int(entry.get("image_id")) or entry["image_id"] not in coco.images:
            audit.counts["detection_without_image"] += 1
        elif entry["score"] < min_score:
            audit.counts["low_score"] += 1
        else:
            try:
                clipped = coco.clip(box.tolist(), entry["image_id"], f"detection {position}")
                rows.append(_Row(position, entry["image_id"], clipped, np.zeros((joints, 3)), entry["score"]))
            except BadEntryError as error:
                audit.bad(*error.args)
    return len(entries), rows
