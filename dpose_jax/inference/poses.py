"""`Poses`: what is predicted of the persons of one image."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dpose_jax.pose.joint_sets import JointSet, Pair


@dataclasses.dataclass(frozen=True)
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
