"""`Poses`: what is predicted of the persons of one image."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dpose_jax.pose.joint_sets import JointSet, Pair


@dataclasses.dataclass(frozen=True)
class Poses:
    """The N persons of one image.

    Attributes:
      keypoints: (N, J, 2) float64, x and y in image pixels.
      keypoint_scores: (N, J) float32, heatmap peaks.
      scores: (N,) float64, box score x mean of the joint scores above `eval.min_joint_score`.
      covariances: (N, J, 2, 2) float64, image pixels squared, by the curvature of the heatmap's peak; the sigma of the
        training targets is part of it, see `uncertainty.peak_covariance`.
      boxes: (N, 4) float64, x, y, width, height, clipped to the image.
      hypotheses: (N, K, J, 2) float64, image pixels, one sample each; None unless K > 1 was asked for.
      joint_set: names, limbs, flip pairs, OKS sigmas.
    """

    keypoints: np.ndarray
    keypoint_scores: np.ndarray
    scores: np.ndarray
    covariances: np.ndarray
    boxes: np.ndarray
    hypotheses: np.ndarray | None
    joint_set: JointSet

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
