"""What the codec costs: AP of encode -> decode of annotated joints, for each codec and stride."""

from absl import flags

from benchmarks import codec_bound, report
from dpose_jax.pose.joint_sets import get_joint_set
from dpose_jax.workdir.files import read_json, sha256

ANNOTATIONS = flags.DEFINE_string("annotations", None, "A COCO person_keypoints file; no image is read.", required=True)
JOINT_SET = flags.DEFINE_string("joint_set", "coco", "coco, crowdpose, aic, or a JSON file.")
USE_AREA = flags.DEFINE_boolean("use_area", True, "OKS by the annotated area; otherwise by 0.53 w h of the box.")
CASES = flags.DEFINE_list(
    "cases", "256x192/1,256x192/2,256x192/4,256x192/8,384x288/4", "Crops and strides, HEIGHTxWIDTH/STRIDE."
)
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", required=True)


def main() -> None:
    """Measures, prints the table and writes the report."""
    environment = report.environment()
    joint_set = get_joint_set(JOINT_SET.value)
    ground_truth = read_json(ANNOTATIONS.value)
    rows = codec_bound.measure(ground_truth, joint_set, CASES.value, use_area=USE_AREA.value)
    protocol = {
        "annotations": ANNOTATIONS.value,
        "annotations_sha256": sha256(ANNOTATIONS.value),
        "joint_set": joint_set.name,
        "use_area": USE_AREA.value,
        "boxes": "the persons' own",
        "padding": codec_bound.PADDING,
        "flip": False,
        "score": "1 for all",
    }
    report.write(OUT.value, rows, environment=environment, protocol=protocol)
