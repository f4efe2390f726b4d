"""Predicts an image, a folder or a video: COCO results, drawn pictures, and a line for every problem."""

import dataclasses
import errno
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dpose_jax.data.sample import PERSON_CATEGORY
from dpose_jax.evaluation.oks import oks_nms
from dpose_jax.evaluation.results import make_results, write_results
from dpose_jax.inference.boxes import BoxSource, checked_boxes
from dpose_jax.inference.images import is_image, list_images, load_image, shrink
from dpose_jax.inference.poses import Poses
from dpose_jax.inference.predictor import Predictor
from dpose_jax.inference.video import VideoReader, write_video
from dpose_jax.recipe import Recipe
from dpose_jax.visualization import draw
from dpose_jax.workdir.files import write_json

PICTURE_SIDE = 2048  # drawn pictures are shrunk to it; videos keep their size
STRIP_PERSONS = 8  # of an image, in its denoising strip
GROUP_IMAGES, GROUP_BYTES = 16, 150_000_000  # images that are held at a time


class PartlyDone(Exception):
    """Some inputs could not be used; the rest is done and written."""


class Item(NamedTuple):
    """One image: its id, the names of its file and of its drawings, its upright RGB pixels, and a frame's time."""

    id: int
    file_name: str
    title: str
    pixels: np.ndarray
    time: float | None = None  # seconds


def predict(
    predictor: Predictor, source: str, out: str, *, boxes: BoxSource | None = None, strips: bool = False
) -> None:
    """Predicts every person of an image, of a folder and its sub-folders, or a video of frames 0, 1, 2, ...

    Writes results.json, COCO results after the evaluation's suppression of duplicates; images.json, the ids, names and
    sizes of the images; pictures/NAME.png, or NAME.mp4 for a video; with `strips` denoising/NAME.png, the denoising of
    up to eight persons an image. Each file is written atomically. Without `boxes` every image is one person.

    Before any work, raises OSError or ValueError if source, boxes or `out` cannot be used, or a drawing would replace
    what it is drawn from; at the end, PartlyDone if an image, a frame or a box could not be used.
    """
    if not os.path.exists(source):
        raise FileNotFoundError(f"input {source!r}: no such file or folder")
    if os.path.exists(out) and not os.path.isdir(out):
        raise NotADirectoryError(f"out {out!r}: is a file")
    if strips and not predictor.sampler.settings:
        raise ValueError("trajectory: the coarse branch, which is all of a plain HRNet, has no denoising to draw")
    job = _Job(predictor, out, boxes or BoxSource())
    if os.path.isdir(source):
        names, others = list_images(source, out)
        for problem in others:
            job.report(problem)
        job.predict_images(source, names, strips)
    elif is_image(source):
        folder, name = os.path.split(source)
        job.predict_images(folder, [name], strips)
    elif strips:
        raise ValueError(f"trajectory: draws images, {source!r} is none")
    else:
        job.predict_video(source)
    if job.problems:
        raise PartlyDone(f"problems: {job.problems}; they are listed above, everything else is done, see {out}")


@dataclasses.dataclass
class _Job:
    predictor: Predictor
    out: str
    boxes: BoxSource
    problems: int = 0

    def report(self, problem: str) -> None:
        self.problems += 1
        tqdm.write(f"problem: {problem}", file=sys.stderr)

    def report_boxes(self) -> None:
        for problem in self.boxes.problems:
            self.report(problem)
        for note in self.boxes.notes:
            tqdm.write(note, file=sys.stderr)

    def predict_images(self, folder: str, names: Sequence[str], strips: bool) -> None:
        paths = [os.path.join(folder, name) for name in names]
        ids = self.boxes.image_ids(names, folder)
        self.report_boxes()
        stems = [os.path.splitext(name)[0] for name in names]
        titles = stems if len(set(stems)) == len(stems) else names
        pictures, denoising = (os.path.join(self.out, kind) for kind in ("pictures", "denoising"))
        _check_apart(paths, [os.path.join(folder, f"{t}.png") for folder in (pictures, denoising) for t in titles])

        def items() -> Iterator[Item]:
            for path, number, name, title in zip(paths, ids, names, titles, strict=True):
                try:
                    yield Item(number, name, title, load_image(path))
                except (OSError, ValueError) as error:
                    self.report(str(error))

        for item, poses in self._predicted(items(), len(paths)):
            self.write_picture(os.path.join(pictures, f"{item.title}.png"), draw_poses(item.pixels, poses))
            if strips and len(poses):
                crops, trajectory, joints = self.predictor.trace(item.pixels, poses.boxes[:STRIP_PERSONS])
                about, codec = step_titles(self.predictor), self.predictor.model.codec
                strip = draw.denoising_strip(crops, trajectory, joints, poses.joint_set, about, warp=codec.name)
                self.write_picture(os.path.join(denoising, f"{item.title}.png"), strip)

    def write_picture(self, path: str, pixels: np.ndarray) -> None:
        try:
            draw.write_png(path, pixels)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            self.report(f"{path}: not drawn: the file name is too long")

    def predict_video(self, path: str) -> None:
        film = os.path.join(self.out, f"{os.path.splitext(os.path.basename(path))[0]}.mp4")
        _check_apart([path], [film])
        reader, read = VideoReader(path), 0
        frames = (Item(n, name := f"frame {n}", name, pixels, reader.time) for n, pixels in enumerate(reader))
        self.boxes.check_frames(reader.count)
        self.report_boxes()
        with write_video(film, reader.fps) as add:
            waiting = None
            for item, poses in self._predicted(frames, reader.count):
                if waiting is not None:
                    add(waiting, item.time)
                waiting = draw_poses(item.pixels, poses, side=math.inf)
                read += 1
            if waiting is not None:
                add(waiting, None)
            # A hundredth is forgiven, because some containers only estimate their number of frames.
            if read < 0.99 * reader.count - 1 or not read:
                self.report(f"{path}: ends early, {read} of {reader.count} frames could be read")

    def _predicted(self, items: Iterable[Item], total: int) -> Iterator[tuple[Item, Poses]]:
        """Every item with its poses; at the end, writes results.json and images.json."""
        results, images = [], []
        for group in _groups(tqdm(items, total=total or None, unit="image", dynamic_ncols=True)):
            boxes = [self._usable_boxes(item) for item in group]
            for item, poses in zip(group, self.predictor([item.pixels for item in group], boxes), strict=True):
                kept, rows = without_duplicates(item.id, poses, self.predictor.recipe, self.boxes.category_id)
                yield item, kept
                results += rows
                height, width = item.pixels.shape[:2]
                images.append({"id": item.id, "file_name": item.file_name, "width": width, "height": height})
                images[-1] |= {} if item.time is None else {"time": round(item.time, 6)}
        write_results(os.path.join(self.out, "results.json"), results)
        write_json(os.path.join(self.out, "images.json"), images)

    def _usable_boxes(self, item: Item) -> np.ndarray:
        clipped, problems = checked_boxes(self.boxes.of(item.id, item.pixels), item.pixels.shape[:2])
        for problem in filter(None, problems):
            self.report(f"{item.title} (image {item.id}): {problem}")
        return clipped[[not problem for problem in problems]]


def _check_apart(read: Iterable[str], written: Iterable[str]) -> None:
    for path in {os.path.realpath(path) for path in read} & {os.path.realpath(path) for path in written}:
        raise ValueError(f"out: would replace the input {path} by its drawing; choose another folder")


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items that are predicted together, so that persons of several images fill a batch."""
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == GROUP_IMAGES or sum(one.pixels.nbytes for one in group) > GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def without_duplicates(
    image_id: int, poses: Poses, recipe: Recipe, category_id: int = PERSON_CATEGORY
) -> tuple[Poses, list[dict]]:
    """The poses that the evaluation's suppression, `eval.nms`, keeps, with the scores that it gives, and as results."""
    ids = [image_id] * len(poses)
    rows = make_results(ids, poses.boxes, poses.keypoints, poses.keypoint_scores, poses.scores, recipe, category_id)
    numbered = [row | {"row": number} for number, row in enumerate(rows)]
    results = oks_nms(numbered, poses.joint_set.sigmas, recipe.eval.nms, soft=recipe.eval.soft_nms)
    kept = poses.select([result["row"] for result in results])
    return dataclasses.replace(kept, scores=np.array([result["score"] for result in results])), results


def draw_poses(image: np.ndarray, poses: Poses, *, side: float = PICTURE_SIDE) -> np.ndarray:
    """The image with every pose, shrunk so that no side is longer than `side` pixels."""
    drawn = shrink(image, side)
    scale = max(drawn.shape[:2]) / max(image.shape[:2])
    for keypoints in poses.keypoints:
        drawn = draw.draw_pose(drawn, (keypoints + 0.5) * scale - 0.5, poses.joint_set)
    return drawn


def step_titles(predictor: Predictor) -> list[str]:
    """The titles of a denoising, see `Predictor.trace`: its start, then every step."""
    (settings,) = predictor.sampler.settings
    return [settings.start.replace("_", " "), *(f"step {k}" for k in range(1, settings.steps + 1))]
