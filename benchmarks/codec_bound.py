"""Annotated joints encoded and decoded: the upper bound that a codec leaves to any network."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dpose_jax.data import crop
from dpose_jax.data.sample import Person
from dpose_jax.evaluation.coco import evaluate_results
from dpose_jax.models.pose_sampler import to_image_pixels
from dpose_jax.pose.codec import CODECS, REFINEMENTS, Codec
from dpose_jax.pose.joint_sets import JointSet

PADDING = 1.25
_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR")


@dataclasses.dataclass(frozen=True)
class Crops:
    """Annotated persons as a perfect network would be given them.

    Attributes:
      persons: N annotations.
      keypoints: (N, J, 2) float32, crop pixels, also of joints off the crop; 0 where not labelled.
      labelled: (N, J) float32, 1 or 0.
      visible: (N, J) float32: 1 where labelled and on the crop.
      to_image: (N, 2, 3) float32 affine maps.
    """

    persons: list[dict]
    labelled: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray
    to_image: np.ndarray


def crop_persons(ground_truth: dict, spec: crop.CropSpec, joint_set: JointSet) -> Crops:
    """The crops of all persons with joints, by their own boxes; crowds are left out."""
    persons, rows = [], []
    for entry in ground_truth["annotations"]:
        joints = np.array(entry["keypoints"], np.float32).reshape(-1, 3)
        if entry.get("iscrowd") or not joints[:, 2].any():
            continue
        person = Person(entry["id"], entry["image_id"], "", np.array(entry["bbox"], np.float32), joints)
        view = crop.padded_view(person.bbox, spec)
        to_image = crop.invert(crop.view_matrix(view, spec)).astype(np.float32)
        labelled = (joints[:, 2] > 0).astype(np.float32)
        rows.append((labelled, *crop.warp_joints(joints, view, spec, joint_set), to_image))
        persons.append(entry)
    return Crops(persons, *(np.stack(column) for column in zip(*rows, strict=True)))


def decoded(crops: Crops, codec: Codec) -> dict[str, np.ndarray]:
    """The joints of every crop after encode -> decode, (N, J, 2) crop pixels, for each refinement of the codec."""
    codecs = {refine: dataclasses.replace(codec, refine=refine) for refine in REFINEMENTS}

    @jax.jit
    def roundtrip(keypoints, visible):
        heatmaps = codec.encode(keypoints, visible)
        return {refine: one.decode(heatmaps)[0] for refine, one in codecs.items()}

    count = len(crops.persons)
    size = min(count, 4 * codec.stride**2)  # the larger the maps, the fewer at once
    parts = []
    for first in tqdm(range(0, count, size), desc=f"{codec.name} {codec.input_size} stride {codec.stride}"):
        chosen = np.minimum(np.arange(first, first + size), count - 1)  # the last batch is as large as the others
        parts.append(jax.device_get(roundtrip(crops.keypoints[chosen], crops.visible[chosen])))
    return jax.tree.map(lambda *part: np.concatenate(part)[:count], *parts)


def measure(ground_truth: dict, joint_set: JointSet, cases: Sequence[str], *, use_area: bool) -> list[dict[str, Any]]:
    """A row for each case, codec and refinement, and one for each size of crop without heatmaps.

    The joints take the same way as in an evaluation: image -> crop -> heatmaps -> crop -> image. A joint that is not
    on the crop has an empty heatmap, which decodes to the crop's first pixel; without heatmaps it lies there too, so
    that the row tells what the crop alone costs.

    Raises:
      ValueError: if a case is not HEIGHTxWIDTH/STRIDE, or the ground truth breaks a rule of `inputs.check_inputs`.
    """
    parsed = [_parse(case) for case in cases]
    rows: list[dict[str, Any]] = []
    for name in CODECS:
        for size in dict.fromkeys(size for size, _ in parsed):
            crops = crop_persons(ground_truth, crop.CropSpec(size, PADDING, name), joint_set)
            sigma = 2.0 * size[0] / 256  # heatmap pixels: 2 for crops of 256 x 192 and 3 for 384 x 288, as HRNet
            found = {(f"{name} crop, no heatmaps", None): crops.keypoints * crops.visible[..., None]}
            for stride in (stride for other, stride in parsed if other == size):
                for refine, joints in decoded(crops, Codec(size, stride, name, sigma=sigma)).items():
                    found[f"{name}+{refine}", stride] = joints
            for (codec, stride), joints in found.items():
                row = {"crop": f"{size[0]}x{size[1]}", "stride": stride, "codec": codec, "sigma": stride and sigma}
                rows.append(row | _score(crops, joints, ground_truth, joint_set, use_area))
                if stride is None:
                    rows[-1] |= {
                        "joints": int(crops.labelled.sum()),
                        "off_crop": int((crops.labelled > crops.visible).sum()),
                    }
    return rows


def _parse(case: str) -> tuple[tuple[int, int], int]:
    try:
        size, stride = case.split("/")
        height, width = (int(side) for side in size.split("x"))
        return (height, width), int(stride)
    except ValueError as error:
        raise ValueError(f"--cases={case!r}: must be HEIGHTxWIDTH/STRIDE, such as 256x192/4") from error


def _score(crops: Crops, joints: np.ndarray, ground_truth: dict, joint_set: JointSet, use_area: bool) -> dict:
    """Metrics, and the mean distance on the crop of the joints that are on it."""
    moved = to_image_pixels(joints, crops.to_image)
    flat = np.concatenate([moved, np.ones((*moved.shape[:2], 1))], axis=-1).reshape(len(moved), -1).tolist()
    results = [
        {"image_id": person["image_id"], "category_id": person["category_id"], "keypoints": row, "score": 1.0}
        for person, row in zip(crops.persons, flat, strict=True)
    ]
    metrics = evaluate_results(ground_truth, results, joint_set, use_area=use_area)
    distance = np.linalg.norm(joints - crops.keypoints, axis=-1)[crops.visible > 0]
    return {name: metrics[name] for name in _METRICS} | {"mean_error_px": float(distance.mean())}
