"""Predicts an image, a folder or a video: COCO results, drawn pictures, and a line for every problem."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tqdm import tqdm

from dpose_jax.evaluation.oks import oks_nms
from dpose_jax.evaluation.results import make_results, write_results
from dpose_jax.inference.boxes import BoxSource, checked_boxes
from dpose_jax.inference.images import SUFFIXES, list_images, load_image, shrink
from dpose_jax.inference.poses import Poses
from dpose_jax.inference.predictor import Predictor
from dpose_jax.inference.video import VideoReader, VideoWriter
from dpose_jax.recipe import Recipe
from dpose_jax.visualization import draw
from dpose_jax.workdir.files import write_json

PICTURE_SIDE = 2048  # drawn pictures are shrunk to it; videos keep their size
STRIP_PERSONS = 8  # of an image, in its denoising strip
GROUP_IMAGES, GROUP_PIXELS = 16, 50_000_000  # images that are held at a time


class PartlyDone(Exception):
    """Some inputs could not be used; the rest is done and written."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One image: its id, the names of its file and of its drawings, and its upright RGB pixels."""

    id: int
    file_name: str
    title: str
    pixels: np.ndarray


def predict(
    predictor: Predictor, source: str, out: str, *, boxes: BoxSource | None = None, strips: bool = False
) -> None:
    """Predicts every person of `source` and writes the results into the folder `out`.

    Writes results.json, COCO results after the evaluation's suppression of duplicates; images.json, the ids, names and
    sizes of the images; pictures/NAME.png, or NAME.mp4 for a video; with `strips` denoising/NAME.png. Each file is
    written atomically.

    Args:
      source: an image, a folder of images, or a video, whose frames are images 0, 1, 2, ...
      boxes: a `BoxFile` or a `Detector`; without, every image is one person.
      strips: draw the denoising of up to eight persons an image; not for videos.

    Raises:
      FileNotFoundError, ValueError: before any work, if source, boxes or `out` cannot be used, or a picture or film
        would replace what it is drawn from.
      PartlyDone: at the end, if an image, a frame or a box could not be used.
    """
    if not os.path.exists(source):
        raise FileNotFoundError(f"input {source!r}: no such file or folder")
    if os.path.exists(out) and not os.path.isdir(out):
        raise NotADirectoryError(f"out {out!r}: is a file")
    job = _Job(predictor, source, out, boxes or BoxSource())
    if os.path.isdir(source) or source.lower().endswith(SUFFIXES):
        job.predict_images(strips)
    elif strips:
        raise ValueError(f"trajectory: draws images, {source!r} is none")
    else:
        job.predict_video()
    if job.problems:
        raise PartlyDone(f"problems: {job.problems}; they are listed above, everything else is done, see {out}")


class _Job:
    """One call of `predict`; counts the problems that it prints."""

    def __init__(self, predictor: Predictor, source: str, out: str, boxes: BoxSource):
        self.predictor, self.source, self.out, self.boxes, self.problems = predictor, source, out, boxes, 0
        for text in boxes.problems:
            self.report(text)

    def report(self, problem: str) -> None:
        self.problems += 1
        tqdm.write(f"problem: {problem}", file=sys.stderr)

    def predict_images(self, strips: bool) -> None:
        paths = list_images(self.source) if os.path.isdir(self.source) else [self.source]
        names = [os.path.basename(path) for path in paths]
        ids = self.boxes.image_ids(names)
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

        def draw_item(item: Item, poses: Poses) -> None:
            draw.write_png(os.path.join(pictures, f"{item.title}.png"), draw_poses(item.pixels, poses))
            if strips and len(poses):
                strip = draw_strip(self.predictor, item.pixels, poses.boxes[:STRIP_PERSONS])
                draw.write_png(os.path.join(denoising, f"{item.title}.png"), strip)

        self._predict_items(items(), len(paths), draw_item)

    def predict_video(self) -> None:
        film = os.path.join(self.out, f"{os.path.splitext(os.path.basename(self.source))[0]}.mp4")
        _check_apart([self.source], [film])
        reader = VideoReader(self.source)
        writer = VideoWriter(film, reader.fps)
        frames = (Item(number, name := f"frame {number}", name, pixels) for number, pixels in enumerate(reader))
        if reader.count:
            self.boxes.check(range(reader.count))

        def draw_item(item: Item, poses: Poses) -> None:
            writer.add(draw_poses(item.pixels, poses, side=None))

        with contextlib.closing(reader), contextlib.closing(writer):
            read = self._predict_items(frames, reader.count, draw_item)
            # A hundredth is forgiven, because some containers only estimate their number of frames.
            if read < 0.99 * reader.count - 1 or not read:
                self.report(f"{self.source}: ends early, {read} of {reader.count} frames could be read")
            writer.finish()

    def _predict_items(self, items: Iterable[Item], total: int, draw_item: Callable[[Item, Poses], None]) -> int:
        """Predicts, draws and lists every item, then writes results.json and images.json; the number of items."""
        results, images = [], []
        with tqdm(total=total or None, unit="image", dynamic_ncols=True) as bar:
            for group in _groups(items):
                boxes = [self._usable_boxes(item) for item in group]
                for item, poses in zip(group, self.predictor([item.pixels for item in group], boxes), strict=True):
                    kept, rows = without_duplicates(item.id, poses, self.predictor.recipe)
                    draw_item(item, kept)
                    results += rows
                    height, width = item.pixels.shape[:2]
                    images.append({"id": item.id, "file_name": item.file_name, "width": width, "height": height})
                bar.update(len(group))
        write_results(os.path.join(self.out, "results.json"), results)
        write_json(os.path.join(self.out, "images.json"), images)
        return len(images)

    def _usable_boxes(self, item: Item) -> np.ndarray | None:
        given = self.boxes.of(item.id, item.pixels)
        if given is None:
            return None
        clipped, texts = checked_boxes(given, item.pixels.shape[:2])
        for text in filter(None, texts):
            self.report(f"{item.title} (image {item.id}): {text}")
        return clipped[[not text for text in texts]]


def _check_apart(read: Iterable[str], written: Iterable[str]) -> None:
    for path in {os.path.realpath(path) for path in read} & {os.path.realpath(path) for path in written}:
        raise ValueError(f"out: would replace the input {path} by its drawing; choose another folder")


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items that are predicted together, so that persons of several images fill a batch."""
    group, pixels = [], 0
    for item in items:
        group.append(item)
        pixels += item.pixels.shape[0] * item.pixels.shape[1]
        if len(group) == GROUP_IMAGES or pixels > GROUP_PIXELS:
            yield group
            group, pixels = [], 0
    if group:
        yield group


def without_duplicates(image_id: int, poses: Poses, recipe: Recipe) -> tuple[Poses, list[dict]]:
    """The poses that the evaluation's suppression, `eval.nms`, keeps, with the scores that it gives, and as results."""
    rows = make_results(
        [image_id] * len(poses), poses.boxes, poses.keypoints, poses.keypoint_scores, poses.scores, recipe
    )
    numbered = [row | {"row": number} for number, row in enumerate(rows)]
    results = oks_nms(numbered, poses.joint_set.sigmas, recipe.eval.nms, soft=recipe.eval.soft_nms)
    kept = poses.select([result["row"] for result in results])
    return dataclasses.replace(kept, scores=np.array([result["score"] for result in results])), results


def draw_poses(image: np.ndarray, poses: Poses, *, side: int | None = PICTURE_SIDE) -> np.ndarray:
    """The image with every pose, shrunk so that no side is longer than `side`; None keeps the size."""
    scale = min(1.0, side / max(image.shape[:2])) if side else 1.0
    image = shrink(image, side) if side else image
    for keypoints in poses.keypoints:
        image = draw.draw_pose(image, (keypoints + 0.5) * scale - 0.5, poses.joint_set)
    return image


def draw_strip(predictor: Predictor, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The denoising of the persons in the boxes, a row each; see `Predictor.trace`."""
    crops, trajectory, joints = predictor.trace(image, boxes)
    titles = [predictor.sampler.settings[0].start.replace("_", " "), *(f"step {k}" for k in range(1, len(trajectory)))]
    codec = predictor.model.codec
    return draw.denoising_strip(crops, trajectory, joints, predictor.joint_set, titles, warp=codec.name)
