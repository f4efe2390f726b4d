"""What the codec costs: AP of encode -> decode of annotated joints, the bound that it sets to any network."""

import dataclasses
import itertools
import re

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from benchmarks import report
from benchmarks.annotations import read_ground_truth
from dpose_jax.data import crop
from dpose_jax.evaluation.coco import evaluate_results
from dpose_jax.models.pose_sampler import to_image_pixels
from dpose_jax.pose.codec import Codec
from dpose_jax.pose.joint_sets import JointSet, get_joint_set
from dpose_jax.workdir.files import sha256

# The tests import several subcommands into one process; flags of the same name have to allow that.
REPEATED = {"required": True, "allow_override": True}
ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "COCO's person_keypoints or AI Challenger's own; no image is read.", **REPEATED
)
JOINT_SET = flags.DEFINE_string("joint_set", "coco", "coco, crowdpose, aic, or a JSON file.")
USE_AREA = flags.DEFINE_boolean("use_area", True, "OKS by the annotated area; otherwise by 0.53 w h of the box.")
CASES = flags.DEFINE_list("cases", "256x192/1,256x192/2,256x192/4,256x192/8,384x288/4", "Crops, HEIGHTxWIDTH/STRIDE.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", **REPEATED)

PADDING = 1.25  # of the boxes
CODECS, REFINEMENTS = ("unbiased", "rounded"), ("dark", "quarter", "none")
METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR")


def main() -> None:
    """Measures, prints the table and writes the report."""
    environment, joint_set = report.environment(), get_joint_set(JOINT_SET.value)
    truth, counts = read_ground_truth(ANNOTATIONS.value, joint_set, use_area=USE_AREA.value)
    rows = measure(truth, joint_set, CASES.value, use_area=USE_AREA.value)
    protocol = {"annotations": ANNOTATIONS.value, "annotations_sha256": sha256(ANNOTATIONS.value)}
    protocol |= {"joint_set": joint_set.name, "use_area": USE_AREA.value, "boxes": "the persons' own"}
    protocol |= {"read": counts}
    protocol |= {"padding": PADDING, "flip": False, "score": "1 for all"}
    report.write(OUT.value, rows, environment=environment, protocol=protocol)


def crop_persons(ground_truth: dict, spec: crop.CropSpec, joint_set: JointSet) -> tuple[list[dict], dict]:
    """The N annotated persons, without crowds and persons without joints, and their crops as float32 arrays by name.

    The ground truth is that of `Source.ground_truth`: its persons with joints have boxes that are not empty.
    """
    persons = [a for a in ground_truth["annotations"] if not a.get("iscrowd") and any(a["keypoints"][2::3])]
    rows = []
    for person in persons:
        joints = np.array(person["keypoints"], np.float32).reshape(-1, 3)
        view = crop.padded_view(np.array(person["bbox"], np.float32), spec)
        keypoints, visible = crop.warp_joints(joints, view, spec, joint_set)
        to_image = crop.invert(crop.view_matrix(view, spec))
        # (J, 2) crop pixels, 0 where not labelled; (J,) 1 or 0, and the same on the crop alone; a (2, 3) affine map.
        rows.append({"keypoints": keypoints, "labelled": joints[:, 2] > 0, "visible": visible, "to_image": to_image})
    return persons, {name: np.stack([row[name] for row in rows]).astype(np.float32) for name in rows[0]}


def encode_decode(codec: Codec, keypoints: np.ndarray, visible: np.ndarray) -> dict[str, np.ndarray]:
    """Joints after encode -> decode, (N, J, 2) crop pixels, by refinement of the codec."""
    codecs = {refine: dataclasses.replace(codec, refine=refine) for refine in REFINEMENTS}

    @jax.jit
    def run(*people):
        heatmaps = codec.encode(*people)
        return {refine: one.decode(heatmaps)[0] for refine, one in codecs.items()}

    size = 4 * codec.stride**2  # the larger the maps, the fewer at once
    starts = tqdm(range(0, len(keypoints), size), desc=f"{codec.name} {codec.input_size} stride {codec.stride}")
    parts = [jax.device_get(run(keypoints[i : i + size], visible[i : i + size])) for i in starts]
    return jax.tree.map(lambda *part: np.concatenate(part), *parts)


def measure(ground_truth: dict, joint_set: JointSet, cases: list[str], *, use_area: bool) -> list[dict]:
    """A row for each case, codec and refinement, and one for each crop size without heatmaps: the cost of the crop.

    Raises ValueError for a case of another form, or an unusable ground truth.
    """
    strides: dict[tuple[int, int], list[int]] = {}
    for case in cases:
        if not re.fullmatch(r"\d+x\d+/\d+", case):
            raise ValueError(f"--cases={case!r}: must be HEIGHTxWIDTH/STRIDE, such as 256x192/4")
        height, width, stride = map(int, re.split("[x/]", case))
        strides.setdefault((height, width), []).append(stride)
    rows = []
    for name, size in itertools.product(CODECS, strides):
        persons, crops = crop_persons(ground_truth, crop.CropSpec(size, PADDING, name), joint_set)
        keypoints, visible = crops["keypoints"], crops["visible"]
        sigma = 2.0 * size[0] / 256  # heatmap pixels: 2 for crops of 256 x 192 and 3 for 384 x 288, as HRNet
        # Joints off the crop are at its first pixel, to which an empty heatmap decodes.
        found = {(f"{name} crop, no heatmaps", None): keypoints * visible[..., None]}
        for given in strides[size]:
            decoded = encode_decode(Codec(size, given, name, sigma=sigma), keypoints, visible)
            found |= {(f"{name}+{refine}", given): joints for refine, joints in decoded.items()}
        for (codec_name, stride), joints in found.items():
            row = {"crop": f"{size[0]}x{size[1]}", "stride": stride, "codec": codec_name, "sigma": stride and sigma}
            metrics = evaluate_results(ground_truth, _results(persons, crops, joints), joint_set, use_area=use_area)
            error = np.linalg.norm(joints - keypoints, axis=-1)[visible > 0].mean()
            row |= {name: metrics[name] for name in METRICS} | {"mean_error_px": float(error)}
            if stride is None:
                row["joints"] = int(crops["labelled"].sum())
                row["off_crop"] = int((crops["labelled"] > visible).sum())
            rows.append(row)
    return rows


def _results(persons: list[dict], crops: dict, joints: np.ndarray) -> list[dict]:
    """(N, J, 2) joints in crop pixels as COCO results with score 1."""
    scored = np.insert(to_image_pixels(joints, crops["to_image"]), 2, 1, axis=2)
    return [
        {"image_id": person["image_id"], "category_id": person["category_id"], "keypoints": row, "score": 1.0}
        for person, row in zip(persons, scored.reshape(len(persons), -1).tolist(), strict=True)
    ]
