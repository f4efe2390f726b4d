"""Synthetic people by index: a `Source`, and the same data as a COCO-format folder (ours)."""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from dpose_jax.data.sample import Person
from dpose_jax.data.synthetic import paint
from dpose_jax.data.synthetic.scene import MAX_PEOPLE, Body, Scene, generator, label, lay_out
from dpose_jax.data.synthetic.skeleton import POINT
from dpose_jax.pose.joint_sets import COCO, JointSet
from dpose_jax.workdir.files import write_bytes

# Validation images are numbered from here, so that no number of training images runs into them.
VAL_FIRST_INDEX = 1 << 24
_MAX_INDEX = 1 << 26
_BATCH = 64  # images laid out together


class SyntheticSource:
    """Drawn people, one item an annotated person; a `Source` (see records.py).

    Image `index` is a function of (seed, index, difficulty, size) alone. Labels follow from geometry: visibility is 2
    where the joint shows, 1 where something (the person's own body too) hides it, 0 outside of the image. The bbox is
    the silhouette's inside the image, and the area counts its pixels, in both cases with the parts hidden by others.
    People of whom less than a tenth shows, or no joint at all, are drawn but not annotated.
    """

    def __init__(
        self,
        num_images: int,
        joint_set: JointSet,
        *,
        difficulty: float,
        seed: int,
        first_index: int = 0,
        size: tuple[int, int] = (256, 320),
    ):
        """Lays every image out once (about a millisecond each at difficulty .5), without drawing.

        Args:
          num_images: at least 1.
          joint_set: must have COCO's joints in COCO's order.
          difficulty: in [0, 1]. 0: one whole upright person on plain ground, nothing hidden by others; 1: crowds,
            clutter, objects in front, cut-off people, unusual poses and views, blur, noise and low contrast.
          seed: not negative.
          first_index: of the first image; images of equal index are equal, so give validation its own range.
          size: (height, width) of the images, pixels, each at least 64.

        Raises:
          ValueError: if an argument is out of range, or the joint set is not COCO's.
        """
        _check(num_images, joint_set, difficulty, seed, first_index, size)
        self.num_images = num_images
        self.difficulty = float(difficulty)
        self.seed = seed
        self.first_index = first_index
        self.size = tuple(size)
        rows, keypoints, self._hidden = [], [], 0
        for image, scene in enumerate(self._scenes()):
            for k, body in enumerate(scene.bodies):
                if body.annotated:
                    rows.append((image, k, *body.bbox, body.area))
                    keypoints.append(body.keypoints)
                else:
                    self._hidden += 1
        self._rows = np.array(rows, np.int32).reshape(-1, 7)
        self._keypoints = np.array(keypoints, np.float32).reshape(-1, COCO.num_joints, 3)

    def scene(self, image: int) -> Scene:
        """The labelled layout of image 0..num_images - 1."""
        scene = self._lay_out([image])[0]
        label(scene)
        return scene

    def draw(self, image: int) -> np.ndarray:
        """Draws image 0..num_images - 1: (height, width, 3) uint8 RGB."""
        return paint_scene(self._lay_out([image])[0], self.seed, self.first_index + image, self.difficulty)

    def _lay_out(self, images: Sequence[int], detailed: bool = True) -> list[Scene]:
        indices = [self.first_index + image for image in images]
        return lay_out(self.seed, indices, self.difficulty, self.size, detailed=detailed)

    def _scenes(self) -> Iterator[Scene]:
        for start in range(0, self.num_images, _BATCH):
            for scene in self._lay_out(range(start, min(start + _BATCH, self.num_images)), detailed=False):
                label(scene)
                yield scene

    def image_id(self, image: int) -> int:
        """Id of image 0..num_images - 1, from 1; it depends on its index alone."""
        return self.first_index + image + 1

    def file_name(self, image: int) -> str:
        """File name of image 0..num_images - 1, as COCO names files."""
        return f"{self.image_id(image):012d}.jpg"

    def __len__(self) -> int:
        """Number of annotated people."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Person:
        """The person at `index`."""
        image, k, *bbox, _ = self._rows[index].tolist()
        return Person(
            annotation_id=self._annotation_id(image, k),
            image_id=self.image_id(image),
            file=f"synthetic(seed={self.seed}, difficulty={self.difficulty:g})/{self.file_name(image)}",
            bbox=np.array(bbox, np.float32),
            keypoints=self._keypoints[index].copy(),
        )

    def read_image(self, index: int) -> np.ndarray:
        """Draws the image of the person at `index`: (height, width, 3) uint8 RGB."""
        return self.draw(int(self._rows[index, 0]))

    def ground_truth(self) -> dict:
        """The annotations as a COCO `person_keypoints` dict; `segmentation` is empty."""
        height, width = self.size
        annotations = []
        for (image, k, *bbox, area), keypoints in zip(self._rows.tolist(), self._keypoints, strict=True):
            annotations.append({
                "id": self._annotation_id(image, k),
                "image_id": self.image_id(image),
                "category_id": 1,
                "iscrowd": 0,
                "bbox": bbox,
                "area": area,
                "segmentation": [],
                "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                "keypoints": [int(v) if v == int(v) else v for v in keypoints.ravel().tolist()],
            })  # fmt: skip
        return {
            "info": {"description": f"synthetic people, seed {self.seed}, difficulty {self.difficulty:g}"},
            "licenses": [],
            "images": [
                {"id": self.image_id(k), "file_name": self.file_name(k), "width": width, "height": height}
                for k in range(self.num_images)
            ],
            "annotations": annotations,
            "categories": [
                {
                    "id": 1,
                    "name": "person",
                    "supercategory": "person",
                    "keypoints": list(COCO.joints),
                    "skeleton": [[a + 1, b + 1] for a, b in COCO.limbs],
                }
            ],
        }

    def report(self) -> dict[str, int]:
        """`kept` annotations, and the people left out because they are `hidden`."""
        return {"kept": len(self), "hidden": self._hidden}

    def _annotation_id(self, image: int, k: int) -> int:
        return self.image_id(image) * (MAX_PEOPLE + 1) + k


def _check(num_images, joint_set, difficulty, seed, first_index, size) -> None:
    if joint_set.joints != COCO.joints:
        raise ValueError(
            f"joint_set={joint_set.name!r}: synthetic people have COCO's 17 joints; use joint_set='coco' (or one with "
            "its joints in its order)"
        )
    if not 0.0 <= difficulty <= 1.0:
        raise ValueError(f"difficulty={difficulty}: must be in [0, 1]")
    if num_images < 1 or seed < 0 or first_index < 0 or first_index + num_images > _MAX_INDEX:
        raise ValueError(
            f"num_images={num_images}, seed={seed}, first_index={first_index}: must be at least 1, 0 and 0, and the "
            f"last index below {_MAX_INDEX}, so that ids fit int32"
        )
    if len(size) != 2 or min(size) < 64:
        raise ValueError(f"size={size}: must be (height, width) of at least 64 px")


def paint_scene(scene: Scene, seed: int, index: int, difficulty: float) -> np.ndarray:
    """Paints a scene: (height, width, 3) uint8 RGB, a function of its arguments alone."""
    rng = generator(seed, index, 1)
    image = paint.ground(rng, scene.size, difficulty)
    paint.clutter(rng, image, int(rng.random() * 26 * difficulty))
    bodies = scene.bodies
    for body in bodies:
        feet = body.points[[POINT["left_ankle"], POINT["right_ankle"]]]
        if feet[:, 1].max() < body.points[POINT["neck"], 1]:
            continue
        paint.shadow(image, feet[:, 0].mean(), feet[:, 1].max() + 0.03 * body.scale, 0.16 * body.scale)
    if rng.random() < difficulty:
        image = cv2.blur(image, (5, 5))
    for layer in scene.layers:
        if isinstance(layer, Body):
            colors = paint.palette(rng)
            points = layer.points
            corners = points[[POINT[f"{side}_{part}"] for part in ("chest", "hem") for side in ("left", "right")]]
            front = points[POINT["left_shoulder"], 0] > points[POINT["right_shoulder"], 0]
            decoration = paint.shirt_pattern(colors["pattern"], corners[:, :2], front)
            paint.paint_body(image, layer.pieces, colors, decoration)
        else:
            paint.paint_object(rng, image, layer)
    return paint.camera(rng, image, difficulty)


def _write_image(path: pathlib.Path, seed: int, index: int, difficulty: float, size: tuple[int, int]) -> None:
    image = paint_scene(lay_out(seed, [index], difficulty, size)[0], seed, index, difficulty)
    _, content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
    write_bytes(path, content.tobytes())


def _write_images(source: SyntheticSource, folder: pathlib.Path, workers: int) -> None:
    count = source.num_images
    arguments = (
        [folder / source.file_name(k) for k in range(count)],
        [source.seed] * count,
        [source.first_index + k for k in range(count)],
        [source.difficulty] * count,
        [source.size] * count,
    )
    if workers == 0:
        for each in zip(*arguments, strict=True):
            _write_image(*each)
        return
    # Spawned, because a fork of a process that has started JAX's threads may hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        for _ in pool.map(_write_image, *arguments, chunksize=32):
            pass


def write_coco_folder(
    folder: str | os.PathLike,
    *,
    train_images: int,
    val_images: int,
    difficulty: float = 0.5,
    seed: int = 0,
    workers: int = 0,
) -> dict[str, dict[str, int]]:
    """Writes synthetic people as a COCO-format folder, which reads like real data.

    Writes `annotations/person_keypoints_{train,val}2017.json`, `train2017/` and `val2017/`. Every file is written
    beside and renamed, the annotations last, so that their presence means a whole split.

    Args:
      folder: made if missing; files of the same names are replaced.
      train_images, val_images: at least 1 each; the two splits share no image.
      difficulty, seed: see SyntheticSource.
      workers: processes that draw; 0 draws in this one. With more, the calling script needs a `__main__` guard.

    Returns:
      `report()` of either split by name.

    Raises:
      ValueError: if an argument is out of range.
    """
    if workers < 0:
        raise ValueError(f"workers={workers}: must be at least 0")
    if train_images > VAL_FIRST_INDEX:
        raise ValueError(f"train_images={train_images}: must be at most {VAL_FIRST_INDEX}")
    root = pathlib.Path(folder)
    reports = {}
    for split, count, first in (("train", train_images, 0), ("val", val_images, VAL_FIRST_INDEX)):
        source = SyntheticSource(count, COCO, difficulty=difficulty, seed=seed, first_index=first)
        images, annotations = root / f"{split}2017", root / "annotations"
        images.mkdir(parents=True, exist_ok=True)
        annotations.mkdir(parents=True, exist_ok=True)
        _write_images(source, images, workers)
        content = json.dumps(source.ground_truth()).encode()
        write_bytes(annotations / f"person_keypoints_{split}2017.json", content)
        reports[split] = source.report()
    return reports
