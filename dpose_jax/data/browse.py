"""Draws the model's inputs: crops after augmentation with their joints, heatmaps and masks, as pictures.

python -m dpose_jax.data.browse --config=configs/coco_w32_256x192.py --config.data.root=COCO --out=DIR

Writes, of the first persons, `train_joints.png` and `val_joints.png`, `train_targets.png` (the target heatmaps) and
`train_inputs.png` (the noised heatmaps and masks, each with its t), and `statistics.json`, what is printed.
"""

import os

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import Batch, eval_batches, train_iterator
from dpose_jax.data.sample import Source
from dpose_jax.data.statistics import format_statistics, statistics
from dpose_jax.diffusion.process import q_sample, to_normalised
from dpose_jax.models.diffusion_pose import DiffusionPose, build_model, build_schedule
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app
from dpose_jax.visualization import draw, grid
from dpose_jax.workdir import recipe_flags
from dpose_jax.workdir.files import write_json

CROP_HEIGHT = 512  # crops are enlarged to at least this, which leaves room for the names
TIE = (165, 165, 165)  # of the line from a name to its joint: visible on paper and on dark pictures
_GUTTER, _LINE, _FONT, _SIZE = 118, 17, cv2.FONT_HERSHEY_SIMPLEX, 0.42


def browse(recipe: Recipe, out: str, persons: int = 12) -> dict:
    """Draws the first `persons` of both splits into the folder `out`; returns the statistics by split.

    Raises ValueError or FileNotFoundError if `persons` is below 1, or the data breaks the rules.
    """
    if persons < 1:
        raise ValueError(f"persons={persons}: must be at least 1")
    model = build_model(recipe)
    sources = {split: make_source(recipe, split, training=split == "train") for split in ("train", "val")}
    # The stream is the same for every batch size.
    stream = train_iterator(recipe.override({"train.batch_size": persons}), sources["train"])
    train = next(stream)
    stream.close()
    val = next(iter(eval_batches(recipe, sources["val"], min(persons, len(sources["val"])))))
    val = {key: value[val["mask"] > 0] for key, value in val.items()}
    for split, batch in (("train", train), ("val", val)):
        path = os.path.join(out, f"{split}_joints.png")
        draw.write_png(path, joints_sheet(batch, sources[split], model.joint_set))
    _write_heatmaps(recipe, model, train, out)
    found = {split: statistics(source, model.joint_set) for split, source in sources.items()}
    write_json(os.path.join(out, "statistics.json"), found)
    return found


def _write_heatmaps(recipe: Recipe, model: DiffusionPose, batch: Batch, out: str) -> None:
    """The targets, and the inputs at t spread over `diffusion.t_range`."""
    codec, schedule = model.codec, build_schedule(recipe.diffusion)
    crops, visible, ids = batch["image"], batch["visible"], batch["annotation_id"]
    t = jnp.asarray(np.linspace(*recipe.diffusion.t_range, len(crops)).round(), jnp.int32)
    y_0 = codec.normalise(codec.to_heatmap(jnp.asarray(batch["keypoints"])))
    noise = jax.random.normal(jax.random.key(recipe.seed), y_0.shape)
    y_t = to_normalised(schedule, q_sample(schedule, y_0, t, noise))
    for name, y, captions in (
        ("targets", y_0, [f"#{i}" for i in ids]),
        ("inputs", y_t, [f"#{i}, t = {k} of {schedule.timesteps}" for i, k in zip(ids, t, strict=True)]),
    ):
        heatmaps = codec.render(codec.denormalise(y), jnp.asarray(visible))
        kps, ske = model.apply({}, y, visible, method="draw_masks")
        maps, kps, ske = jax.device_get((heatmaps, kps, ske))
        sheet = draw.heatmap_sheet(crops, maps, kps, ske, model.joint_set, warp=codec.name, captions=captions)
        draw.write_png(os.path.join(out, f"train_{name}.png"), sheet)


def joints_sheet(batch: Batch, source: Source, joint_set: JointSet) -> np.ndarray:
    """Crops with the names of their joints beside them, (height, width, 3) uint8; occluded joints have a pale name."""
    scale = -(-CROP_HEIGHT // batch["image"].shape[1])
    cells = []
    for row in range(len(batch["image"])):
        person = source[int(batch["index"][row])]
        mirrored = np.linalg.det(batch["to_image"][row][:, :2]) < 0
        order = list(joint_set.flip_order) if mirrored else slice(None)
        occluded = person.keypoints[order, 2] == 1
        cell = _named(batch["image"][row], batch["keypoints"][row], batch["visible"][row], occluded, joint_set, scale)
        notes = [f"#{person.annotation_id}", os.path.basename(person.file), *(["mirrored"] if mirrored else [])]
        cells.append(np.concatenate([cell, grid.label("  ".join(notes), cell.shape[1], grid.INK)]))
    return grid.grid(cells, min(3, len(cells)))


def _named(crop, keypoints, visible, occluded, joint_set: JointSet, scale: int) -> np.ndarray:
    """The crop between two columns of names, with a line from each name to its joint."""
    big = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    points = (keypoints.astype(np.float64) + 0.5) * scale - 0.5  # pixel centres are at integers
    height, width = big.shape[:2]
    panel = np.full((height, width + 2 * _GUTTER, 3), grid.PAPER, np.uint8)
    panel[:, _GUTTER:-_GUTTER] = big
    labelled = np.flatnonzero(visible > 0)
    by_x = labelled[np.argsort(points[labelled, 0], kind="stable")]
    for left, joints in ((True, by_x[: len(by_x) // 2]), (False, by_x[len(by_x) // 2 :])):
        joints = joints[np.argsort(points[joints, 1], kind="stable")]
        for joint, y in zip(joints, _spread(points[joints, 1], height), strict=True):
            name = joint_set.joints[joint].replace("_", " ")
            (text, _), _ = cv2.getTextSize(name, _FONT, _SIZE, 1)
            place = (_GUTTER - 10 - text if left else width + _GUTTER + 10, y + 4)
            color = grid.FAINT if occluded[joint] else grid.INK
            cv2.putText(panel, name, place, _FONT, _SIZE, color, 1, cv2.LINE_AA)
            edge = (_GUTTER - 6 if left else width + _GUTTER + 6, y)
            cv2.line(panel, edge, (round(points[joint, 0]) + _GUTTER, round(points[joint, 1])), TIE, 1, cv2.LINE_AA)
    inside = panel[:, _GUTTER:-_GUTTER]
    inside[:] = draw.draw_pose(inside, points, joint_set, shown=visible, thickness=3)
    return panel


def _spread(heights: np.ndarray, limit: int) -> list[int]:
    """Sorted heights moved at least a line apart, inside the picture."""
    lines = _LINE * np.arange(len(heights))
    down = np.maximum.accumulate(np.clip(heights, _LINE, limit - _LINE) - lines) + lines
    return np.minimum(down, limit - _LINE * len(heights) + lines).round().astype(int).tolist()


if __name__ == "__main__":
    CONFIG = recipe_flags.define("A file of configs/.")
    OUT = flags.DEFINE_string("out", None, "The folder for pictures and statistics.")
    PERSONS = flags.DEFINE_integer("persons", 12, "How many persons of each split to draw.")
    flags.mark_flags_as_required(["config", "out"])

    def main():
        for split, found in browse(Recipe.from_config(CONFIG.value), OUT.value, PERSONS.value).items():
            print(format_statistics(split, found))
        print(f"pictures: {OUT.value}")

    app.run(main)
