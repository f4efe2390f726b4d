"""COCO results: persons with a score each, and the file that COCO's evaluation server takes."""

from collections.abc import Iterable, Sequence

import numpy as np

from dpose_jax.data.coco_format import PERSON_CATEGORY
from dpose_jax.recipe import Recipe
from dpose_jax.workdir.files import write_json


def score_persons(joint_scores: np.ndarray, box_scores: np.ndarray, min_joint_score: float) -> np.ndarray:
    """Person score = box score x mean of the joint scores above `min_joint_score`; 0 if none is (HRNet's rule).

    Of joint scores (N, J) and box scores (N,), in float64. A joint score equal to the limit does not count.
    """
    joint_scores = np.asarray(joint_scores, np.float64)
    above = joint_scores > min_joint_score
    total = np.sum(joint_scores * above, axis=1)
    return np.asarray(box_scores, np.float64) * total / np.maximum(above.sum(axis=1), 1)


def crop_area(box: Sequence[float], padding: float, input_size: tuple[int, int]) -> float:
    """Area of the crop of a box, square pixels: the box grown to the input's aspect, then padded.

    HRNet compares duplicates at this scale, not at that of the box or of the person.
    """
    height, width = input_size
    wide = max(float(box[2]), float(box[3]) * width / height)
    return padding**2 * wide * (wide * height / width)


def make_results(
    image_ids: Sequence[int],
    boxes: np.ndarray,
    keypoints: np.ndarray,
    joint_scores: np.ndarray,
    scores: np.ndarray,
    recipe: Recipe,
    category_id: int = PERSON_CATEGORY,
) -> list[dict]:
    """COCO results of N persons, as `oks_nms` and `write_results` take them.

    Boxes (N, 4: x, y, width, height) and keypoints (N, J, 2) are in image pixels; joint scores (N, J), person scores
    (N,). Returns dicts of Python numbers: `image_id`, `category_id`, `keypoints` (3J: x, y, joint score), `score`,
    `bbox` and `area` (of the recipe's crop).
    """
    rows = np.concatenate([keypoints, joint_scores[..., None]], axis=-1).astype(np.float64)
    return [
        {
            "image_id": int(image_id),
            "category_id": category_id,
            "keypoints": row.ravel().tolist(),
            "score": float(score),
            "bbox": [float(side) for side in box],
            "area": crop_area(box, recipe.crop.padding, recipe.input_size),
        }
        for image_id, box, row, score in zip(image_ids, boxes, rows, scores, strict=True)
    ]


def without_boxes(results: Iterable[dict]) -> list[dict]:
    """The results in COCO's submission format: `image_id`, `category_id`, `keypoints` and `score`.

    A `bbox` would change the areas that pycocotools gives to results, hence APm and APl.
    """
    return [{key: result[key] for key in ("image_id", "category_id", "keypoints", "score")} for result in results]


def write_results(path: str, results: Iterable[dict]) -> None:
    """Writes a COCO results file (see `without_boxes`) atomically; raises ValueError if a number is not finite."""
    write_json(path, without_boxes(results), indent=None)
