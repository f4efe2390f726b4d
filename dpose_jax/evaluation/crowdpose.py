"""CrowdPose's levels: the images by how crowded they are (Li et al., CVPR 2019, and its evaluation API)."""

from collections.abc import Sequence

MEDIUM, HARD = 0.2, 0.8  # the crowdIndex from which an image is of that level


def crowd_slices(images: Sequence[dict], name: str = "ground truth") -> dict[str, list[int]]:
    """The ids of the images of each level, by their `crowdIndex`: below 0.2, below 0.8, and from 0.8 on.

    Args:
      images: image entries of a ground truth.
      name: of the ground truth, for errors.

    Returns:
      `{"AP_easy": [...], "AP_medium": [...], "AP_hard": [...]}`, named after the metrics; empty if no image has a
      `crowdIndex`.

    Raises:
      ValueError: if some images have one and others have not, or it is no number from 0 on; names the image.
    """
    if not any("crowdIndex" in image for image in images):
        return {}
    slices: dict[str, list[int]] = {"AP_easy": [], "AP_medium": [], "AP_hard": []}
    for image in images:
        index = image.get("crowdIndex")
        if not isinstance(index, int | float) or not index >= 0:
            raise ValueError(f"{name}: image {image['id']}: crowdIndex must be a number from 0 on, got {index}")
        slices["AP_easy" if index < MEDIUM else "AP_medium" if index < HARD else "AP_hard"].append(image["id"])
    return slices
