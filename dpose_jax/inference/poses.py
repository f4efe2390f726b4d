"""`Poses`: what is predicted of the persons of one image."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from dpose_jax.inference.images import ImageLike, load_image, shrink
from dpose_jax.pose.joint_sets import JointSet, Pair
from dpose_jax.visualization import draw
from dpose_jax.workdir.files import write_bytes, write_json

MIN_JOINT_SCORE = 0.2  # joints below it are not drawn: that of HRNet's person score
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def draw_persons(
    image: np.ndarray,
    keypoints: np.ndarray,
    scores: np.ndarray,
    joint_set: JointSet,
    *,
    min_score: float = MIN_JOINT_SCORE,
    side: float = math.inf,
) -> np.ndarray:
    """The image (h, w, 3) uint8 with N persons, shrunk so that no side is longer than `side` pixels.

    Keypoints (N, J, 2) are in pixels of `image`. Joints with a score, (N, J), below `min_score` are not drawn.
    """
    drawn = shrink(image, side)
    scale = max(drawn.shape[:2]) / max(image.shape[:2])
    for joints, its in zip(keypoints, scores, strict=True):
        drawn = draw.draw_pose(drawn, (joints + 0.5) * scale - 0.5, joint_set, shown=np.asarray(its) >= min_score)
    return drawn


@dataclasses.dataclass(frozen=True, repr=False)
class Poses:
    """The N persons of one image.

    Covariances are those of the curvature of the heatmap's peak; the sigma of the training targets is part of them, see
    `uncertainty.peak_covariance`.
    """

    keypoints: np.ndarray  # (N, J, 2) float64, x and y in image pixels
    keypoint_scores: np.ndarray  # (N, J) float32, heatmap peaks
    scores: np.ndarray  # (N,) float64, box score x mean of the joint scores above `eval.min_joint_score`
    covariances: np.ndarray  # (N, J, 2, 2) float64, image pixels squared
    boxes: np.ndarray  # (N, 4) float64, x, y, width, height, clipped to the image
    hypotheses: np.ndarray | None  # (N, K, J, 2) float64, image pixels, samples; None unless K > 1 was asked for
    joint_set: JointSet  # names, limbs, flip pairs, OKS sigmas

    def __len__(self) -> int:
        return len(self.keypoints)

    def __repr__(self) -> str:
        scores = ", ".join([*(f"{score:.2f}" for score in self.scores[:4]), *["…"] * (len(self) > 4)])
        count = f"{len(self)} person{'s' * (len(self) != 1)}"
        return f"Poses({count}, {len(self.names)} joints of {self.joint_set.name!r}, scores [{scores}])"

    def draw(self, image: ImageLike, *, min_score: float = MIN_JOINT_SCORE) -> np.ndarray:
        """The image that was predicted with its poses, (height, width, 3) uint8 RGB, upright.

        Joints with a score below `min_score`, and their limbs, are left out. Raises as `load_image`.
        """
        found = self.keypoints, self.keypoint_scores, self.joint_set
        return draw_persons(load_image(image), *found, min_score=min_score)

    def to_dict(self) -> dict[str, Any]:
        """Lists and numbers for JSON: `joints` (names), `limbs`, and `persons`.

        A person has `score`, `box` (x, y, width, height), `keypoints` (J of x, y, score), `covariances` (J, 2, 2), and
        `hypotheses` (K, J, 2) where there are any; pixels of the image.
        """
        rows = np.concatenate([self.keypoints, self.keypoint_scores[..., None]], axis=-1)
        parts = {"score": self.scores, "box": self.boxes, "keypoints": rows, "covariances": self.covariances}
        parts |= {} if self.hypotheses is None else {"hypotheses": self.hypotheses}
        persons = [{key: value[i].tolist() for key, value in parts.items()} for i in range(len(self))]
        return {"joints": list(self.names), "limbs": [list(limb) for limb in self.limbs], "persons": persons}

    def save(self, path: str | os.PathLike, image: ImageLike | None = None) -> None:
        """Writes `to_dict` as FILE.json or, with the image, its drawing as FILE.png, .jpg or .webp; atomically.

        Raises ValueError for another suffix, or a picture without an image, OSError if the file cannot be written.
        """
        suffix = os.path.splitext(path)[1].lower()
        if suffix == ".json" and image is None:
            write_json(path, self.to_dict())
        elif suffix in PICTURES and image is not None:
            write_bytes(path, cv2.imencode(suffix, self.draw(image)[..., ::-1])[1].tobytes())
        else:
            ways = f"must be FILE.json, or with an image FILE of {', '.join(PICTURES)}"
            raise ValueError(f"path={os.fspath(path)!r} {'without' if image is None else 'with'} an image: {ways}")

    def select(self, rows: Sequence[int]) -> "Poses":
        """The persons of these rows."""
        arrays = {key: value for key, value in vars(self).items() if isinstance(value, np.ndarray)}
        return dataclasses.replace(self, **{key: value[np.asarray(rows, int)] for key, value in arrays.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """J joint names."""
        return self.joint_set.joints

    @property
    def limbs(self) -> tuple[Pair, ...]:
        """Pairs of joint indices."""
        return self.joint_set.limbs
