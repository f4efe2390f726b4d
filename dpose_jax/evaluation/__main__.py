"""Scores a results file.

python -m dpose_jax.evaluation --dataset=coco --annotations=GT.json --results=PRED.json --out=OUT.json
"""

from absl import flags

from dpose_jax.evaluation.coco import ENGINES
from dpose_jax.evaluation.report import format_table
from dpose_jax.evaluation.results_file import DATASETS, score_files
from dpose_jax.pose.joint_sets import get_joint_set
from dpose_jax.runtime import app
from dpose_jax.workdir.files import write_json

DATASET = flags.DEFINE_enum("dataset", None, list(DATASETS), "Whose joints and protocol.")
JOINT_SET = flags.DEFINE_string("joint_set", None, "A JSON file of one's own joints, instead of the data set's.")
USE_AREA = flags.DEFINE_boolean("use_area", None, "OKS by the annotated area, or by 0.53 w h of the box; by data set.")
ENGINE = flags.DEFINE_enum("engine", ENGINES[0], ENGINES, "Of COCO's metrics: the same numbers, hotcoco sooner.")
ANNOTATIONS = flags.DEFINE_string("annotations", None, "The ground truth, in COCO's or AI Challenger's format.")
RESULTS = flags.DEFINE_string("results", None, "The predictions, a COCO results file or an AI Challenger submission.")
CATEGORY = flags.DEFINE_string("category", None, "The persons' in the annotations, by name or id, where that is open.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file.")


def main():
    """Scores the file that the flags name."""
    if not (DATASET.value or JOINT_SET.value):
        raise ValueError(f"--dataset or --joint_set is needed; --dataset is one of {', '.join(DATASETS)}")
    use_area = DATASETS.get(DATASET.value, True) if USE_AREA.value is None else USE_AREA.value
    joint_set = get_joint_set(JOINT_SET.value or DATASET.value)
    options = {"use_area": use_area, "engine": ENGINE.value, "category": CATEGORY.value}
    report = score_files(ANNOTATIONS.value, RESULTS.value, joint_set, **options)
    write_json(OUT.value, report)
    metrics = {name: value for name, value in report.items() if name not in ("joints", "protocol", "mean_pose")}
    shown = {name: report[name] for name in ("protocol", "mean_pose")}
    print(format_table(shown | {"results": {"results": metrics}}))


if __name__ == "__main__":
    flags.mark_flags_as_required(["annotations", "results", "out"])
    app.run(main)
