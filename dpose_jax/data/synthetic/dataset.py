"""Synthetic people by index: a `Source`, and the same data as a COCO-format folder (ours)."""

import concurrent.futures
import contextlib
import functools
import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dpose_jax.data.sample import Person
from dpose_jax.data.synthetic.paint import paint_scene
from dpose_jax.data.synthetic.scene import MAX_PEOPLE, Settings, label, lay_out
from dpose_jax.pose.joint_sets import COCO, JointSet
from dpose_jax.typed_fields import fail
from dpose_jax.workdir.files import write_bytes

VAL_FIRST_INDEX = 1 << 24  # of validation images; training images are numbered below it
_MAX_INDEX = 1 << 26  # so that ids fit int32
_BATCH = 64  # images laid out together


class SyntheticSource:
    """Drawn people, one item an annotated person; a `Source` (see sample.py).

    Image `index` is a function of (seed, index, difficulty, size) alone. Labels follow from geometry. Visibility is 2
    where the joint shows, 1 where something (the person's own body too) hides it, 0 outside of the image. Bbox and
    area are those of the silhouette inside the image, parts hidden by others included. People of whom less than a
    tenth is visible, or no joint at all, are drawn but not annotated.
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
        """Lays out every image once (about a millisecond each at difficulty .5), without drawing.

        Difficulty 0 is one whole upright person on plain ground; 1 has crowds, clutter, objects in front, cut-off
        people, unusual poses and views, blur, noise and low contrast. Images of equal index are equal; `first_index`
        is that of the first, below 2**26. `size` is (height, width), each at least 64 px. Raises ValueError if an
        argument is out of range, or the joint set has not COCO's joints in COCO's order.
        """
        most = (VAL_FIRST_INDEX if first_index < VAL_FIRST_INDEX else _MAX_INDEX) - first_index
        count_rule = f"lie in [1, {most}]; a recipe sets it as data.synthetic.train_images or val_images"
        same_joints = joint_set.joints == COCO.joints
        for name, value, holds, rule in (
            ("joint_set", joint_set.name, same_joints, "have COCO's joints, such as joint_set='coco'"),
            ("difficulty", difficulty, 0 <= difficulty <= 1, "lie in [0, 1]"),
            ("seed", seed, seed >= 0, "not be negative"),
            ("first_index", first_index, 0 <= first_index < _MAX_INDEX, f"lie in [0, {_MAX_INDEX})"),
            ("num_images", num_images, 1 <= num_images <= most, count_rule),
            ("size", size, len(size) == 2 and min(size) >= 64, "be (height, width) of at least 64 px each"),
        ):
            if not holds:
                fail(name, value, rule)
        self.num_images, self.first_index = num_images, first_index
        self.settings = Settings(seed, float(difficulty), (size[0], size[1]))
        self._hidden = 0
        rows, keypoints = [], []
        indices = range(first_index, first_index + num_images)
        for start in range(0, num_images, _BATCH):
            for scene in lay_out(self.settings, indices[start : start + _BATCH], detailed=False):
                label(scene)
                annotated = [(k, body) for k, body in enumerate(scene.bodies) if body.annotated]
                rows += [(scene.index - first_index, k, *body.bbox, body.area) for k, body in annotated]
                keypoints += [body.keypoints for _, body in annotated]
                self._hidden += len(scene.bodies) - len(annotated)
        self._rows = np.array(rows, np.int32).reshape(-1, 7)
        self._keypoints = np.array(keypoints, np.float32).reshape(-1, COCO.num_joints, 3)

    def draw(self, image: int) -> np.ndarray:
        """Draws image 0..num_images - 1: (height, width, 3) uint8 RGB."""
        return paint_scene(lay_out(self.settings, [self.first_index + image])[0])

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
        seed, difficulty, _ = self.settings
        file = f"synthetic(seed={seed}, difficulty={difficulty:g})/{self.file_name(image)}"
        box, keypoints = np.array(bbox, np.float32), self._keypoints[index].copy()
        return Person(self._annotation_id(image, k), self.image_id(image), file, box, keypoints)

    def read_image(self, index: int) -> np.ndarray:
        """Draws the image of the person at `index`: (height, width, 3) uint8 RGB."""
        return self.draw(int(self._rows[index, 0]))

    def ground_truth(self) -> dict[str, Any]:
        """The annotations as a COCO `person_keypoints` dict; `segmentation` is empty."""
        seed, difficulty, (height, width) = self.settings
        annotations = [
            {
                "id": self._annotation_id(image, k), "image_id": self.image_id(image), "category_id": 1, "iscrowd": 0,
                "bbox": bbox, "area": area, "segmentation": [], "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                "keypoints": [int(v) if v == int(v) else v for v in keypoints.ravel().tolist()],
            }
            for (image, k, *bbox, area), keypoints in zip(self._rows.tolist(), self._keypoints, strict=True)
        ]  # fmt: skip
        person = {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(COCO.joints)}
        person["skeleton"] = [[a + 1, b + 1] for a, b in COCO.limbs]
        size = {"width": width, "height": height}
        images = [{"id": self.image_id(k), "file_name": self.file_name(k)} | size for k in range(self.num_images)]
        info = {"description": f"synthetic people, seed {seed}, difficulty {difficulty:g}"}
        return {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": [person]}

    def report(self) -> dict[str, int]:
        """`kept` annotations, and the people left out because they are `hidden`."""
        return {"kept": len(self), "hidden": self._hidden}

    def _annotation_id(self, image: int, k: int) -> int:
        return self.image_id(image) * (MAX_PEOPLE + 1) + k


def _write_image(settings: Settings, path: Path, index: int) -> None:
    image = paint_scene(lay_out(settings, [index])[0])
    _, content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
    write_bytes(path, content.tobytes())


def write_coco_folder(
    folder: str | Path, *, train_images: int, val_images: int, difficulty: float = 0.5, seed: int = 0, workers: int = 0
) -> dict[str, dict[str, int]]:
    """Writes synthetic people as a COCO-format folder, which reads like real data; returns each split's `report()`.

    Writes `train2017/`, `val2017/` and `annotations/person_keypoints_{train,val}2017.json`. Writes are atomic; files of
    the same names are replaced. The annotations of a split come last, so they exist only if all of its images do.
    Each split has at least one image; they share none. `workers` processes draw, this one if 0; with more, the calling
    script needs a `__main__` guard. Raises ValueError if an argument is out of range; see SyntheticSource.
    """
    if workers < 0:
        fail("workers", workers, "not be negative")
    root, reports = Path(folder), {}
    # Spawned, because a fork of a process that has started JAX's threads may hang.
    pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) if workers else None
    run: Callable[..., Iterable[None]] = functools.partial(pool.map, chunksize=32) if pool else map
    with pool or contextlib.nullcontext():
        for split, count, first in (("train", train_images, 0), ("val", val_images, VAL_FIRST_INDEX)):
            source = SyntheticSource(count, COCO, difficulty=difficulty, seed=seed, first_index=first)
            paths = [root / f"{split}2017" / source.file_name(image) for image in range(count)]
            list(run(functools.partial(_write_image, source.settings), paths, itertools.count(first)))
            content = json.dumps(source.ground_truth()).encode()
            write_bytes(root / "annotations" / f"person_keypoints_{split}2017.json", content)
            reports[split] = source.report()
    return reports
