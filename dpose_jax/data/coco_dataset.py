"""Persons from annotations in COCO's keypoint format, checked before the training starts."""

import collections
import os
from typing import NamedTuple

import numpy as np

from dpose_jax.data.coco_format import Annotations, Audit, is_int, is_number, numbers
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


class AnnotatedSource:
    """The persons of one annotation file over a store of images; implements `records.Source`.

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
          joint_set: must fit the annotations, see `annotations.check_joint_names`.
          box_file: detected boxes; the persons are then these (without joints) instead of the annotated ones.
            Not for training.
          min_box_score: detected boxes below it are left out, in [0, 1].
          use_area: `ground_truth` gives the annotation's area where it has one, else 0.53 w h.
          max_bad_share: share of the records that may be malformed, in [0, 1].
          training: whether the persons are for training.

        Raises:
          FileNotFoundError: if a folder or file does not exist.
          ValueError: if a file is not in the format, the joint set does not fit, too many records
            are malformed, or no person is left; names the file and the counts.
        """
        if training and box_file is not None:
            raise ValueError(f"detections={box_file!r}: training needs annotated persons, not detected boxes")
        self._images = images
        self._annotation_file = annotation_file
        self._joint_set = joint_set
        self._use_area = use_area
        self.box_file = box_file
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

    def _with_image(self, rows, images, audit):
        """The rows whose image the store has."""
        names = {row[1]: images[row[1]]["file_name"] for row in rows}
        problems = {image_id: self._images.problem(name) for image_id, name in names.items()}
        kept = []
        for row in rows:
            if problems[row[1]]:
                audit.bad(problems[row[1]], f"id {row[0]}, image {row[1]}, file {names[row[1]]!r}")
            else:
                kept.append(row)
        return kept

    def _fill(self, rows, images, file):
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
        name = self._files[self._image_rows[index]]
        where = f"{self._images.place(name)} (id {self._ids[index]})"
        try:
            image = decode_image(self._images.read(name))
        except (OSError, ValueError) as error:
            raise BadRecordError(f"{where}: {error}") from error
        height, width = self._sizes[self._image_rows[index]]
        if image.shape[:2] != (height, width):
            found = f"{image.shape[1]} x {image.shape[0]}"
            raise BadRecordError(f"{where}: the image is {found} px, its annotation says {width} x {height}")
        return image

    def images(self, *, whole: bool) -> list[ListedImage]:
        """The images in the order in which persons name them; with `whole` those without persons follow."""
        persons: list[list[int]] = [[] for _ in self._files]
        for index, row in enumerate(self._image_rows.tolist()):
            persons[row].append(index)
        sizes = map(tuple, self._sizes.tolist())
        rows = zip(self._files, self._image_ids.tolist(), sizes, persons, strict=True)
        found = [ListedImage(*row) for row in rows]
        if whole:
            known = set(self._files)
            for image in self._annotations(Audit(self._annotation_file, lines=0)).images.values():
                name = image["file_name"]
                if name not in known and not self._images.problem(name):
                    known.add(name)
                    found.append(ListedImage(name, image["id"], (image["height"], image["width"]), []))
        return found

    def ground_truth(self) -> dict:
        """The split as a COCO dict, read anew: every well-formed annotation, crowds and persons without joints too.

        `area` is positive: the annotation's if `use_area` and it has one, else 0.53 w h of its box (1 if that
        is not positive). The category has id 1, as the results. `num_keypoints` is kept where given.

        Raises:
          ValueError: if the file is no longer in the format.
        """
        coco = self._annotations(Audit(self._annotation_file, lines=0))
        seen: set[int] = set()
        kept = []
        for entry in coco.entries:
            checked = coco.check(entry, seen)
            if checked is None:
                continue
            keypoints, box = checked
            if self._use_area and _has_area(entry):
                area = entry["area"]
            else:
                area = 0.53 * box[2] * box[3] if min(box[2:]) > 0 else 1.0
            labelled = int((keypoints[:, 2] > 0).sum())
            kept.append(
                {
                    **{key: entry[key] for key in ("id", "image_id")},
                    "category_id": 1,
                    "bbox": box,
                    "area": float(area),
                    "iscrowd": int(bool(entry.get("iscrowd"))),
                    "num_keypoints": entry["num_keypoints"] if is_int(entry.get("num_keypoints")) else labelled,
                    "keypoints": keypoints.ravel().tolist(),
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
        folder = ImageFolder(os.path.join(root, images))
        box_file = None if detections is None else os.path.join(root, detections)
        super().__init__(os.path.join(root, annotations), folder, joint_set, box_file=box_file, **options)

    def image_notes(self) -> dict[str, int]:
        """Images with persons by each of IMAGE_NOTES, from their headers; reads the beginning of every file."""
        headers = [self._images.header(name) for name in self._files]
        found = collections.Counter(note for header in headers if header for note in header.notes())
        return {note: found[note] for note in IMAGE_NOTES}


def _has_area(entry: dict) -> bool:
    return is_number(entry.get("area")) and entry["area"] > 0


def _annotated_rows(coco: Annotations, audit: Audit) -> list[tuple]:
    """(id, image id, clipped box, joints, score 1) of every person with joints."""
    rows = []
    seen: set[int] = set()
    for entry in coco.entries:
        checked = coco.check(entry, seen)
        if checked is None:
            continue
        joints, box = checked
        audit.counts["area_entry"] += entry.get("area") is not None and not _has_area(entry)
        labelled = joints[:, 2] > 0
        if entry.get("iscrowd"):
            audit.counts["crowd"] += 1
        elif not labelled.any():
            audit.counts["no_joints"] += 1
        else:
            image = coco.images[entry["image_id"]]
            box = coco.clip(box, entry["image_id"], f"id {entry['id']}")
            inside = (joints[:, :2] >= -0.5) & (joints[:, :2] <= np.array([image["width"], image["height"]]) - 0.5)
            audit.counts["joint_outside_image"] += int((labelled & ~inside.all(axis=1)).sum())
            rows.append((entry["id"], entry["image_id"], box, joints * labelled[:, None], 1.0))
    return rows


def _detected_rows(file, coco: Annotations, min_score: float, joints: int, audit: Audit) -> tuple[int, list[tuple]]:
    """Number of boxes in the file, and (position, image id, clipped box, zeros, score) of those to use."""
    boxes = read_json(file)
    if not isinstance(boxes, list):
        raise ValueError(f"{file}: must be a list of detections, as COCO's result files, got {type(boxes).__name__}")
    rows = []
    empty = np.zeros((joints, 3))
    for position, entry in enumerate(boxes):
        where = f"detection {position}"
        box = numbers(entry.get("bbox"), 4) if isinstance(entry, dict) else None
        if box is None or not np.isfinite(box).all() or not is_number(entry.get("score")):
            audit.bad("detection_entry", f"{where}: {str(entry)[:80]}")
        elif entry.get("category_id") != coco.category_id:
            audit.counts["other_category"] += 1
        elif not is_int(entry.get("image_id")) or entry["image_id"] not in coco.images:
            audit.counts["detection_without_image"] += 1
        elif entry["score"] < min_score:
            audit.counts["low_score"] += 1
        elif (box := coco.clip(box.tolist(), entry["image_id"], where)) is not None:
            rows.append((position, entry["image_id"], box, empty, entry["score"]))
    return len(boxes), rows
