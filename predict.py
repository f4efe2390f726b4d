"""Predicts the poses of people in an image, a folder of images or a video.

python predict.py --input=IMAGE|FOLDER|VIDEO --out=DIR [--workdir=runs/demo] [--boxes=FILE] [--steps=4] [--trajectory]

Without --workdir or --model the small model that comes with the package predicts.
"""

from absl import flags

from dpose_jax import Predictor, command_line
from dpose_jax.prediction.run import PartlyDone, predict

WORKDIR = flags.DEFINE_string("workdir", None, "A folder that was trained into.")
MODEL = flags.DEFINE_string("model", None, "Instead of --workdir, a model folder (model.safetensors and model.json).")
INPUT = flags.DEFINE_string("input", None, "An image, a folder of images, or a video.")
OUT = flags.DEFINE_string("out", None, "The folder for results.json, images.json and what is drawn.")
BOXES = flags.DEFINE_string("boxes", None, "Boxes in COCO's format; without, every image is one person.")
MIN_BOX_SCORE = flags.DEFINE_float("min_box_score", 0.0, "Boxes below this score are left out.")
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps, 0 for the coarse branch; by default the model's fewest.")
FLIP = flags.DEFINE_bool("flip", None, "Average with the mirrored crop; by default as the model was evaluated.")
TRAJECTORY = flags.DEFINE_bool("trajectory", False, "Draw the denoising of each image's persons too.")


def main():
    """Loads the model that the flags name and predicts."""
    predict(
        Predictor.load(WORKDIR.value, MODEL.value, steps=STEPS.value, flip=FLIP.value),
        INPUT.value,
        OUT.value,
        boxes=BOXES.value,
        min_box_score=MIN_BOX_SCORE.value,
        strips=TRAJECTORY.value,
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["input", "out"])
    command_line.run(main, errors=(PartlyDone,))
