"""AI Challenger's own keypoint annotations, converted to COCO's format.

The published file is a list with an entry an image: `image_id` (the file's name without `.jpg`), `url`,
`keypoint_annotations` {name of the human: 14 x [x, y, v]} and `human_annotations` {name: [left, top, right, bottom]}.
Its visibility is 1 visible, 2 occluded, 3 not labelled. It gives no image size.
"""

from collections.abc import Callable
from typing import Any

from dpose_jax.data.sample import PERSON_CATEGORY
from dpose_jax.pose.joint_sets import AIC

_VISIBILITY = {1: 2, 2: 1, 3: 0}  # to COCO's 0 not labelled, 1 occluded, 2 visible
_BROKEN = -1  # no visibility of COCO's: the rule `joint_visibility` counts it
_UNKNOWN_SIDE = 1 << 20  # pixels, for an image that is missing or unreadable: no box sticks out of it


def to_coco(content: list, size: Callable[[str], tuple[int, int] | None]) -> dict:
    """AI Challenger's list as a COCO `person_keypoints` dict.

    Image and annotation ids are places in the file, from 1, and do not change when an entry breaks a rule. Malformed
    values are copied, so that `coco_format.Annotations` counts them. The humans of a repeated image are left out.
    `size` gives (width, height) in pixels by file name, or None where the image is missing or unreadable.
    """
    images, annotations, humans = list[Any](), list[dict](), 0
    ids: dict[str, int] = {}
    for place, entry in enumerate(content, start=1):
        name = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            images.append(entry)
            continue
        image_id, file = ids.setdefault(name, place), f"{name}.jpg"
        width, height = size(file) or (_UNKNOWN_SIDE, _UNKNOWN_SIDE)
        images.append({"id": image_id, "file_name": file, "width": width, "height": height})
        found = (entry.get(f"{kind}_annotations") for kind in ("keypoint", "human"))
        joints, boxes = (value if isinstance(value, dict) else {} for value in found)
        for human in dict.fromkeys([*joints, *boxes]):
            humans += 1
            if image_id == place:
                person = {"id": humans, "image_id": image_id, "category_id": PERSON_CATEGORY, "iscrowd": 0}
                annotations.append(person | {"keypoints": _joints(joints.get(human)), "bbox": _box(boxes.get(human))})
    category = {"id": PERSON_CATEGORY, "name": "person", "keypoints": list(AIC.joints)}
    return {"images": images, "annotations": annotations, "categories": [category]}


def _joints(values):
    if not isinstance(values, list):
        return values
    return [
        _VISIBILITY.get(v, _BROKEN) if k % 3 == 2 and isinstance(v, int | float) else v for k, v in enumerate(values)
    ]


def _box(corners):
    try:
        left, top, right, bottom = corners
        return [left, top, right - left, bottom - top]
    except (TypeError, ValueError):
        return corners
