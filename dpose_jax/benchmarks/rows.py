"""The rows of the table of speeds: each measures one piece of work and returns one entry a contender."""

import numpy as np

from dpose_jax.benchmarks import report
from dpose_jax.codec import Codec
from dpose_jax.skeletons import COCO

BATCH, SIZE = 64, (256, 192)


def draw_people(codec: Codec, seed: int = 0):
    """(BATCH, J, 2) float32 joints anywhere in the crop, in crop pixels, and their flags, all 1."""
    rng = np.random.default_rng(seed)
    keypoints = rng.random((BATCH, COCO.num_joints, 2)) * (np.array(codec.input_size[::-1]) - 1)
    return keypoints.astype(np.float32), np.ones((BATCH, COCO.num_joints), np.float32)


def heatmaps() -> list[dict]:
    """Targets of a batch of persons."""
    codec = Codec(SIZE)
    people = draw_people(codec)
    encode, seconds = report.compiled(codec.encode, *people)
    timing = report.measure({"ours": lambda: encode(*people)})["ours"]
    return [{"work": "heatmap sets/s", "who": "ours", "value": BATCH / timing.median, "compile_seconds": seconds}]


ROWS = {"heatmaps": heatmaps}
