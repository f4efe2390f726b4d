"""Predicts the poses of people in an image, a folder of images or a video, by default with the bundled model.

python predict.py --input=IMAGE|FOLDER|VIDEO --out=DIR [--workdir=runs/demo|--model=FOLDER|--weights=hrnet_w32]
  [--boxes=FILE [--category=NAME]|--detector=fasterrcnn] [--steps=4] [--trajectory]
"""

from dpose_jax.runtime import start

start.begin()

from absl import flags

from dpose_jax import Predictor
from dpose_jax.inference import poses
from dpose_jax.inference.boxes import BoxFile, BoxSource
from dpose_jax.inference.detector import DETECTORS, MODELS, Detector
from dpose_jax.inference.predict_files import PartlyDone, predict
from dpose_jax.runtime import app
from dpose_jax.workdir import weights_flags

WORKDIR = flags.DEFINE_string("workdir", None, "A folder that was trained into.")
MODEL = flags.DEFINE_string("model", None, "Instead of --workdir, a model folder, or hf:OWNER/REPO.")
WEIGHTS = weights_flags.define("Instead, a published HRNet")
INPUT = flags.DEFINE_string("input", None, "An image, a folder of images, or a video.", required=True)
OUT = flags.DEFINE_string("out", None, "The folder for results.json, images.json and what is drawn.", required=True)
BOXES = flags.DEFINE_string("boxes", None, "Boxes in COCO's format; without, every image is one person.")
DETECTOR = flags.DEFINE_string(
    "detector", None, f"Instead of --boxes, what finds them: {', '.join(DETECTORS)}, downloaded once, or its file."
)
DETECTOR_MODEL = flags.DEFINE_string("detector_model", None, f"The model of a file: {', '.join(MODELS)}; the first.")
CATEGORY = flags.DEFINE_string("category", None, "The persons' category in --boxes, by name or id; its id in results.")
MATCH = flags.DEFINE_enum("match", "name", ["name", "number"], "Boxes find images by name, or the number that ends it.")
MIN_BOX_SCORE = flags.DEFINE_float("min_box_score", None, "Leave out boxes below it; default 0 (0.5 with --detector).")
app.only_with("detector_model", "detector")
app.only_with("match", "boxes")
app.only_with("min_box_score", "boxes", "detector")
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps, 0 for the coarse branch; by default the model's fewest.")
FLIP = flags.DEFINE_bool("flip", None, "Average with the mirrored crop; by default as the model was evaluated.")
MIN_JOINT_SCORE = flags.DEFINE_float(
    "min_joint_score", poses.MIN_JOINT_SCORE, "Joints below it are not drawn; results.json has all."
)
TRAJECTORY = flags.DEFINE_bool("trajectory", False, "Draw the denoising of each image's persons too.")


def box_source() -> BoxSource:
    """Where the flags say that boxes come from."""
    options = {} if MIN_BOX_SCORE.value is None else {"min_score": MIN_BOX_SCORE.value}
    if BOXES.value is not None and DETECTOR.value is not None:
        raise ValueError("give one of --boxes and --detector, or neither")
    if BOXES.value is not None:
        return BoxFile(BOXES.value, category=CATEGORY.value, by_number=MATCH.value == "number", **options)
    if DETECTOR.value is not None:
        source: BoxSource = Detector(DETECTOR.value, DETECTOR_MODEL.value, **options)
    else:
        source = BoxSource()
    if CATEGORY.value is not None:
        if not CATEGORY.value.isdecimal():
            raise ValueError(f"--category={CATEGORY.value!r}: must be an id where no --boxes file has names")
        source.category_id = int(CATEGORY.value)
    return source


def load() -> Predictor:
    """The model that the flags name."""
    if WEIGHTS.value is None:
        return Predictor.load(WORKDIR.value, MODEL.value, steps=STEPS.value, flip=FLIP.value)
    if WORKDIR.value or MODEL.value or STEPS.value:
        raise ValueError("--weights are a plain HRNet: give them without --workdir, --model and --steps")
    return Predictor.from_weights(WEIGHTS.value, flip=FLIP.value, **weights_flags.options())


def main():
    options = {"boxes": box_source(), "strips": TRAJECTORY.value, "min_joint_score": MIN_JOINT_SCORE.value}
    predict(load(), INPUT.value, OUT.value, **options)


if __name__ == "__main__":
    app.run(main, errors=(PartlyDone,))
