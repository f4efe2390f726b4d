"""Rendered people by index: a `Source` (ours)."""

from typing import Any

import numpy as np

from dpose_jax.data.rendered.backdrop import Pictures, cut, invent, photograph
from dpose_jax.data.rendered.body import load_body
from dpose_jax.data.rendered.paint import paint
from dpose_jax.data.rendered.poses import read_poses
from dpose_jax.data.rendered.scene import Scene, lay_out
from dpose_jax.data.sample import Person
from dpose_jax.data.synthetic.dataset import VAL_FIRST_INDEX
from dpose_jax.data.synthetic.scene import Settings, generator
from dpose_jax.pose.joint_sets import COCO, JointSet
from dpose_jax.recipe import Rendered
from dpose_jax.typed_fields import fail

_PHOTO = 0.4  # of the images with a folder of backgrounds: the share whose cloth may be cut from a picture


class RenderedSource:
    """Rendered 3-D people, one item an image: its subject; a `Source` (see sample.py).

    Image `index` is a function of (seed, index, difficulty, size, poses, backgrounds) alone. Other people in the image
    are not annotated. Visibility is 2 where the joint shows, 1 where something (the person's own body too) hides it, 0
    outside of the image. Bbox and area are those of the silhouette inside the image, parts hidden by others included.

    An item is laid out when it is asked for, in about ten milliseconds, and kept until the next one.
    """

    generated = True

    def __init__(self, recipe: Rendered, joint_set: JointSet, split: str, *, max_bad_share: float = 0.01):
        """Reads the poses and lists the backgrounds; renders nothing.

        Args:
          recipe: `data.rendered` of a recipe.
          joint_set: must have COCO's joints in COCO's order.
          split: `train` or `val`; they share no image.
          max_bad_share: of the entries of `data.rendered.poses` that may be malformed.

        Raises:
          FileNotFoundError: if a file or folder of the recipe is missing.
          ValueError: if such a file is broken, the joint set is not COCO's, or the extra [render] is missing.
        """
        if joint_set.joints != COCO.joints:
            fail("joint_set", joint_set.name, "have COCO's joints, such as joint_set='coco'")
        load_body()
        self.settings = Settings(recipe.seed, recipe.difficulty, recipe.size)
        self.num_images = recipe.train_images if split == "train" else recipe.val_images
        self.first_index = 0 if split == "train" else VAL_FIRST_INDEX
        self._poses: np.ndarray | None = None
        self._counts: dict[str, int] = {}
        if recipe.poses:
            self._poses, self._counts = read_poses(recipe.poses, max_bad_share)
        self._pictures = Pictures(recipe.backgrounds) if recipe.backgrounds else None
        self._kept: tuple[int, Scene] | None = None

    def __getstate__(self):
        return self.__dict__ | {"_kept": None}

    def scene(self, index: int) -> Scene:
        """The layout of image 0..num_images - 1, with its labels."""
        if not 0 <= index < self.num_images:
            raise IndexError(index)
        kept = self._kept
        if kept is None or kept[0] != index:
            kept = index, lay_out(self.settings, self.first_index + index, self._poses)
            self._kept = kept
        return kept[1]

    def image_id(self, index: int) -> int:
        """Id of image 0..num_images - 1, from 1; that of its annotation too."""
        return self.first_index + index + 1

    def __len__(self) -> int:
        """Number of images, and of annotated people."""
        return self.num_images

    def __getitem__(self, index: int) -> Person:
        """The subject of the image at `index`."""
        scene = self.scene(index)
        seed, difficulty, _ = self.settings
        return Person(
            annotation_id=self.image_id(index),
            image_id=self.image_id(index),
            file=f"rendered(seed={seed}, difficulty={difficulty:g})/{self.image_id(index):012d}.jpg",
            bbox=np.array(scene.bbox, np.float32),
            keypoints=scene.keypoints.copy(),
        )

    def read_image(self, index: int) -> np.ndarray:
        """Renders the image at `index`: (height, width, 3) uint8 RGB; raises BadRecordError for its background."""
        scene = self.scene(index)
        rng, photo = generator(self.settings, scene.index, 2), None
        size, difficulty = self.settings.size, self.settings.difficulty
        if self._pictures is None:
            background = invent(rng, size, difficulty)
        else:
            background = cut(rng, self._pictures.read(int(rng.random() * len(self._pictures))), size)
            if rng.random() < _PHOTO:
                photo = self._pictures.read(int(rng.random() * len(self._pictures)))
        return photograph(rng, paint(scene, background, photo), difficulty)

    def ground_truth(self) -> dict[str, Any]:
        """The annotations as a COCO `person_keypoints` dict, after laying out every image; `segmentation` is empty."""
        height, width = self.settings.size
        images, annotations = [], []
        for index in range(self.num_images):
            number, scene = self.image_id(index), self.scene(index)
            images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height})
            annotations.append({
                "id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "bbox": list(scene.bbox),
                "area": scene.area, "segmentation": [], "keypoints": scene.keypoints.ravel().tolist(),
                "num_keypoints": int((scene.keypoints[:, 2] > 0).sum()),
            })  # fmt: skip
        skeleton = [[a + 1, b + 1] for a, b in COCO.limbs]
        person = {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(COCO.joints)}
        return {
            "info": {"description": f"rendered people, {self.settings}"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [person | {"skeleton": skeleton}],
        }

    def report(self) -> dict[str, int]:
        """`kept` people, and what `read_poses` counted."""
        return {"kept": len(self)} | self._counts
