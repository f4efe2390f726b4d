"""Predicts an image, a folder or a video: COCO results, drawn pictures, and a list of what went wrong."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tqdm import tqdm

from dpose_jax.evaluation.coco import write_results
from dpose_jax.evaluation.oks import oks_nms
from dpose_jax.evaluation.report import crop_area
from dpose_jax.inference.boxes import BoxSource, WholeImages, checked_boxes
from dpose_jax.inference.images import SUFFIXES, list_images, load_image, shrink
from dpose_jax.inference.predictor import Poses, Predictor
from dpose_jax.inference.video import VideoReader, VideoWriter
from dpose_jax.visualization import draw
from dpose_jax.workdir.files import write_json

PICTURE_SIDE = 2048  # drawn pictures are shrunk to it; videos keep their size
STRIP_PERSONS = 8  # of an image, in its denoising strip
GROUP_IMAGES, GROUP_PIXELS = 16, 50_000_000  # images that are held at a time


class PartlyDone(Exception):
    """Some inputs could not be used; the rest is done and written."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One image: its id, the name of its file (or the number of its frame), and its upright RGB pixels."""

    id: int
    name: str
    pixels: np.ndarray


class Problems:
    """Messages, shown as they come and counted."""

    def __init__(self):
        self.count = 0

    def add(self, text: str) -> None:
        self.count += 1
        tqdm.write(f"problem: {text}", file=sys.stderr)


def predict(
    predictor: Predictor, source: str, out: str, *, boxes: BoxSource | None = None, strips: bool = False
) -> None:
    """Predicts every person of `source` and writes the results into the folder `out`.

    Files: results.json, COCO results after the evaluation's suppression of duplicates; images.json, the ids, names and
    sizes of the images; pictures/NAME.png, or NAME.mp4 for a video; denoising/NAME.png with `strips`. Each is whole
    or absent.

    Args:
      source: an image, a folder of images, or a video, whose frames are images 0, 1, 2, ...
      boxes: of a `BoxFile` or a `Detector`; without, every image is one person.
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
    boxes, problems = boxes or WholeImages(), Problems()
    for text in boxes.problems:
        problems.add(text)
    if os.path.isdir(source) or source.lower().endswith(SUFFIXES):
        _predict_images(predictor, source, out, boxes, problems, strips)
    else:
        if strips:
            raise ValueError(f"trajectory: shows images, {source} is none")
        _predict_video(predictor, source, out, boxes, problems)
    if problems.count:
        raise PartlyDone(f"problems: {problems.count}; they are listed above, everything else is done, see {out}")


def _predict_images(predictor, source, out, boxes, problems, strips) -> None:
    paths = list_images(source) if os.path.isdir(source) else [source]
    names = [os.path.basename(path) for path in paths]
    ids = boxes.image_ids(names)
    stems = [os.path.splitext(name)[0] for name in names]
    titles = stems if len(set(stems)) == len(stems) else names
    folders = {kind: os.path.join(out, kind) for kind in ("pictures", "denoising")}
    _check_apart(paths, [os.path.join(folder, f"{title}.png") for folder in folders.values() for title in titles])

    def items() -> Iterator[Item]:
        for path, number, title in zip(paths, ids, titles, strict=True):
            try:
                yield Item(number, title, load_image(path))
            except (OSError, ValueError) as error:
                problems.add(str(error))

    def draw_item(item: Item, poses: Poses) -> None:
        draw.write_png(os.path.join(folders["pictures"], f"{item.name}.png"), draw_poses(item.pixels, poses))
        if strips and len(poses):
            strip = draw_strip(predictor, item.pixels, poses.boxes[:STRIP_PERSONS])
            draw.write_png(os.path.join(folders["denoising"], f"{item.name}.png"), strip)

    file_names = dict(zip(ids, names, strict=True))
    _predict_items(predictor, items(), len(paths), out, boxes, problems, draw_item, file_names)


def _predict_video(predictor, source, out, boxes, problems) -> None:
    film = os.path.join(out, f"{os.path.splitext(os.path.basename(source))[0]}.mp4")
    _check_apart([source], [film])
    reader = VideoReader(source)
    writer = VideoWriter(film, reader.fps)
    frames = (Item(number, f"frame {number}", pixels) for number, pixels in enumerate(reader))
    if reader.count:
        boxes.check(range(reader.count))
    with contextlib.closing(reader), contextlib.closing(writer):
        draw_item = lambda item, poses: writer.add(draw_poses(item.pixels, poses, side=None))  # noqa: E731
        read = _predict_items(predictor, frames, reader.count, out, boxes, problems, draw_item, {})
        # A hundredth is forgiven, because some containers only estimate their number of frames.
        if read < 0.99 * reader.count - 1 or not read:
            problems.add(f"{source}: ends early, {read} of {reader.count} frames could be read")
        writer.finish()


def _check_apart(read: Iterable[str], written: Iterable[str]) -> None:
    for path in {os.path.realpath(path) for path in read} & {os.path.realpath(path) for path in written}:
        raise ValueError(f"out: would replace the input {path} by its drawing; choose another folder")


def _predict_items(
    predictor: Predictor,
    items: Iterable[Item],
    total: int,
    out: str,
    boxes: BoxSource,
    problems: Problems,
    draw_item: Callable[[Item, Poses], None],
    file_names: dict[int, str],
) -> int:
    """Predicts, draws and lists every item, then writes results.json and images.json; the number of items."""
    results, images = [], []
    with tqdm(total=total or None, unit="image", dynamic_ncols=True) as bar:
        for group in _groups(items):
            chosen = [_usable_boxes(item, boxes, problems) for item in group]
            for item, poses in zip(group, predictor([item.pixels for item in group], chosen), strict=True):
                kept = without_duplicates(predictor, poses)
                draw_item(item, kept)
                results += to_results(item.id, kept)
                height, width = item.pixels.shape[:2]
                name = file_names.get(item.id, item.name)
                images.append({"id": item.id, "file_name": name, "width": width, "height": height})
            bar.update(len(group))
    write_results(os.path.join(out, "results.json"), results)
    write_json(os.path.join(out, "images.json"), images)
    return len(images)


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


def _usable_boxes(item: Item, boxes: BoxSource, problems: Problems) -> np.ndarray | None:
    given = boxes.of(item.id, item.pixels)
    if given is None:
        return None
    clipped, texts = checked_boxes(given, item.pixels.shape[:2])
    for text in filter(None, texts):
        problems.add(f"{item.name} (image {item.id}): {text}")
    return clipped[[not text for text in texts]]


def without_duplicates(predictor: Predictor, poses: Poses) -> Poses:
    """The poses that the evaluation's suppression, `eval.nms`, keeps, with the scores that it gives them."""
    config = predictor.config
    rows = [
        {**row, "row": i, "area": crop_area(box, config.crop.padding, config.input_size)}
        for i, (row, box) in enumerate(zip(to_results(0, poses), poses.boxes, strict=True))
    ]
    soft = config.eval.soft_nms
    kept = oks_nms(rows, poses.joint_set.sigmas, config.eval.nms, soft=soft)
    return dataclasses.replace(poses.select([row["row"] for row in kept]), scores=np.array([r["score"] for r in kept]))


def to_results(image_id: int, poses: Poses) -> list[dict]:
    """COCO results of the poses of one image: x, y and joint score of every joint, and the person's score."""
    rows = np.concatenate([poses.keypoints, poses.keypoint_scores[..., None]], axis=-1)
    return [
        {"image_id": image_id, "category_id": 1, "keypoints": row.ravel().tolist(), "score": float(score)}
        for row, score in zip(rows, poses.scores, strict=True)
    ]


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
