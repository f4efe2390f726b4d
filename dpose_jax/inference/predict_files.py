"""Predicts an image, a folder or a video: COCO results, drawn pictures, and a line for every problem."""

import contextlib
import dataclasses
import errno
import itertools
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dpose_jax.data.image_files import file_header
from dpose_jax.data.sample import PERSON_CATEGORY
from dpose_jax.evaluation.oks import oks_nms
from dpose_jax.evaluation.results import make_results, without_boxes, write_results
from dpose_jax.inference.boxes import BoxSource, checked_boxes
from dpose_jax.inference.images import is_image, is_utf8, list_images, load_image
from dpose_jax.inference.poses import MIN_JOINT_SCORE, Poses, draw_persons
from dpose_jax.inference.predictor import Predictor
from dpose_jax.inference.progress import Entry, Progress, stamp
from dpose_jax.inference.video import VideoReader, write_video
from dpose_jax.recipe import Recipe
from dpose_jax.visualization import draw
from dpose_jax.workdir.files import write_json

PICTURE_SIDE = 2048  # drawn pictures are shrunk to it; videos keep their size
STRIP_PERSONS = 8  # of an image, in its denoising strip
# What a write may end with, after which the finished images are kept.
_UNWRITABLE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "the disk is full")
_UNWRITABLE |= {number: os.strerror(number) for number in (errno.EFBIG, errno.EIO, errno.EROFS)}
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
    predictor: Predictor,
    source: str,
    out: str,
    *,
    boxes: BoxSource | None = None,
    strips: bool = False,
    min_joint_score: float = MIN_JOINT_SCORE,
) -> None:
    """Predicts every person of an image, of a folder and its sub-folders, or a video of frames 0, 1, 2, ...

    Writes results.json, COCO results after the evaluation's suppression of duplicates; images.json, the ids, names and
    sizes of the images; pictures/NAME.png, or NAME.mp4 for a video; with `strips` denoising/NAME.png, the denoising of
    up to eight persons an image. Each file is written atomically. Without `boxes` every image is one person. Joints
    with a score below `min_joint_score` are not drawn, but are in results.json. Prints which model it is, and what was
    written.

    What is finished is kept in unfinished.jsonl until all is: a call that was stopped, or ended with the OSError of a
    full disk, goes on when it is made again. Before any work, raises OSError or ValueError if source, boxes or `out`
    cannot be used, or a drawing would replace what it is drawn from; at the end, PartlyDone if an image, a frame or a
    box could not be used.
    """
    if not os.path.exists(source):
        raise FileNotFoundError(f"input {source!r}: no such file or folder")
    if not is_utf8(source) or not is_utf8(out):
        raise ValueError(f"input {source!a} and out {out!a} must be UTF-8; rename the file or folder")
    if os.path.exists(out) and not os.path.isdir(out):
        raise NotADirectoryError(f"out {out!r}: is a file")
    if strips and not predictor.sampler.settings:
        raise ValueError("trajectory: the coarse branch, which is all of a plain HRNet, has no denoising to draw")
    boxes = boxes or BoxSource()
    made_by: dict[str, Any] = {
        "input": os.path.abspath(source),
        "model": predictor.fingerprint(),
        "boxes": boxes.identity(),
        "strips": strips,
        "min_joint_score": min_joint_score,
    }
    job = _Job(predictor, out, boxes, Progress(out, made_by), min_joint_score)
    try:
        job.run(source, strips)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise OSError(f"{out}: {_UNWRITABLE[error.errno]}; {job.progress.told(job.total)}") from error
    except (KeyboardInterrupt, SystemExit):
        tqdm.write(f"stopped: {job.progress.told(job.total)}", file=sys.stderr)
        raise
    finally:
        job.progress.close()
    if job.problems:
        raise PartlyDone(f"problems: {job.problems}; they are listed above, everything else is done, see {out}")


@dataclasses.dataclass
class _Job:
    predictor: Predictor
    out: str
    boxes: BoxSource
    progress: Progress
    min_joint_score: float
    problems: int = 0
    total: int = 0  # images or frames; 0 is an unknown count

    def run(self, source: str, strips: bool) -> None:
        if os.path.isdir(source):
            names, others = list_images(source, self.out)
            for problem in others:
                self.report(problem)
            self.predict_images(source, names, strips)
        elif is_image(source):
            folder, name = os.path.split(source)
            self.predict_images(folder, [name], strips)
        elif strips:
            raise ValueError(f"trajectory: draws images, {source!r} is none")
        else:
            self.predict_video(source)

    def report(self, problem: str, kept: list[str] | None = None) -> None:
        """Prints a problem; `kept` are those of an image, which a later start repeats."""
        self.problems += 1
        tqdm.write(f"problem: {problem}", file=sys.stderr)
        if kept is not None:
            kept.append(problem)

    def begin(self) -> None:
        """Says, once all inputs are checked, which model predicts, and what is odd about the boxes."""
        print(f"model: {self.predictor.about}", flush=True)
        for problem in self.boxes.problems:
            self.report(problem)
        for note in self.boxes.notes:
            tqdm.write(note, file=sys.stderr)
        for entry in self.progress.entries.values():
            for problem in entry["problems"]:
                self.report(problem)
        if before := self.progress.before:
            print(f"{self.progress.path}: going on after {before} finished images", flush=True)

    def predict_images(self, folder: str, names: Sequence[str], strips: bool) -> None:
        paths = [os.path.join(folder, name) for name in names]
        self.total, ids = len(names), self.boxes.image_ids(names, folder)
        stems = [os.path.splitext(name)[0] for name in names]
        titles = stems if len(set(stems)) == len(stems) else names
        kinds = ("pictures", "denoising")
        drawings = {title: [os.path.join(self.out, kind, f"{title}.png") for kind in kinds] for title in titles}
        _check_apart(paths, itertools.chain(*drawings.values()))
        stamps = {number: stamp(path) for number, path in zip(ids, paths, strict=True)}
        rows = [
            (path, number, name, title)
            for path, number, name, title in zip(paths, ids, names, titles, strict=True)
            # A picture that was removed is drawn anew.
            if not (os.path.exists(drawings[title][0]) and self.progress.resume(number, name, stamps[number]))
        ]
        self.begin()

        def items() -> Iterator[Item]:
            for path, number, name, title in rows:
                try:
                    pixels = load_image(path)
                except (OSError, ValueError) as error:
                    self.report(str(error))
                    continue
                header = file_header(path)
                if header and "image_of_several" in header.notes:
                    tqdm.write(f"{path}: holds several pictures, the first is taken", file=sys.stderr)
                yield Item(number, name, title, pixels)

        for item, entry, poses in self._predicted(items(), len(rows)):
            picture, strip = drawings[item.title]
            self.write_picture(picture, self.drawn(item, entry, PICTURE_SIDE), entry)
            if strips and poses is not None and len(poses):
                self.write_picture(strip, self.strip(item, poses), entry)
            self.progress.add(entry | {"stamp": stamps[item.id]})
        self.finish(ids, "pictures/")

    def drawn(self, item: Item, entry: Entry, side: float) -> np.ndarray:
        joint_set = self.predictor.joint_set
        found = _rows(entry, joint_set.num_joints)
        style: dict[str, float] = {"min_score": self.min_joint_score, "side": side}
        return draw_persons(item.pixels, found[..., :2], found[..., 2], joint_set, **style)

    def strip(self, item: Item, poses: Poses) -> np.ndarray:
        crops, trajectory, joints = self.predictor.trace(item.pixels, poses.boxes[:STRIP_PERSONS])
        about, codec = step_titles(self.predictor), self.predictor.model.codec
        return draw.denoising_strip(crops, trajectory, joints, poses.joint_set, about, warp=codec.name)

    def write_picture(self, path: str, pixels: np.ndarray, entry: Entry) -> None:
        with self.named_too_long(path, entry["problems"]):
            draw.write_png(path, pixels)

    @contextlib.contextmanager
    def named_too_long(self, path: str, kept: list[str] | None = None) -> Iterator[None]:
        """Reports a drawing whose file name the system refuses; the results are written all the same."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            self.report(f"{path}: not drawn: the file name is too long", kept)

    def predict_video(self, path: str) -> None:
        film = os.path.join(self.out, f"{os.path.splitext(os.path.basename(path))[0]}.mp4")
        _check_apart([path], [film])
        reader, its_stamp = VideoReader(path), stamp(path)
        self.total = reader.count
        self.boxes.check_frames(reader.count)
        self.progress.resume_frames(its_stamp)
        self.begin()

        def frames() -> Iterator[Item]:
            for number, pixels in enumerate(reader):
                yield Item(number, name := f"frame {number}", name, pixels, reader.time)

        ids = list[int]()
        with self.named_too_long(film), write_video(film, reader.fps) as add:
            waiting = None
            for item, entry, poses in self._predicted(frames(), reader.count):
                if poses is not None:
                    self.progress.add(entry | {"stamp": its_stamp})
                if waiting is not None:
                    add(waiting, item.time)
                waiting = self.drawn(item, entry, math.inf)
                ids.append(item.id)
            if waiting is not None:
                add(waiting, None)
            # A hundredth is forgiven, because some containers only estimate their number of frames.
            if len(ids) < 0.99 * reader.count - 1 or not ids:
                self.report(f"{path}: ends early, {len(ids)} of {reader.count} frames could be read")
        self.finish(ids, os.path.basename(film))

    def _predicted(self, items: Iterable[Item], total: int) -> Iterator[tuple[Item, Entry, Poses | None]]:
        """Every item with its entry and its poses; without poses if an earlier start has finished it."""
        known = self.progress.entries
        for group in _groups(tqdm(items, total=total or None, unit="image", dynamic_ncols=True)):
            fresh = [item for item in group if item.id not in known]
            problems: dict[int, list[str]] = {item.id: [] for item in fresh}
            boxes = [self._usable_boxes(item, problems[item.id]) for item in fresh]
            found = iter(self.predictor([item.pixels for item in fresh], boxes))
            for item in group:
                if item.id in known:
                    yield item, known[item.id], None
                    continue
                poses = next(found)
                kept, rows = without_duplicates(item.id, poses, self.predictor.recipe, self.boxes.category_id)
                height, width = item.pixels.shape[:2]
                image = {"id": item.id, "file_name": item.file_name, "width": width, "height": height}
                image |= {} if item.time is None else {"time": round(item.time, 6)}
                yield item, {"image": image, "results": without_boxes(rows), "problems": problems[item.id]}, kept

    def finish(self, ids: Sequence[int], drawn: str) -> None:
        """Writes results.json and images.json, in the order of `ids`, and says what lies where."""
        entries = [self.progress.entries[number] for number in ids if number in self.progress.entries]
        results = [row for entry in entries for row in entry["results"]]
        write_results(os.path.join(self.out, "results.json"), results)
        write_json(os.path.join(self.out, "images.json"), [entry["image"] for entry in entries])
        self.progress.finish()
        scores = _rows({"results": results}, self.predictor.joint_set.num_joints)[..., 2]
        hidden = int((scores < self.min_joint_score).sum())
        print(f"{self.out}: results.json (persons: {len(results)}), images.json (images: {len(entries)}), {drawn}")
        for doubt in self.boxes.doubts():
            print(doubt)
        if hidden:
            why = f"scores below --min_joint_score={self.min_joint_score:g}"
            print(f"not drawn: {hidden} of {scores.size} joints, {why}; results.json has them")

    def _usable_boxes(self, item: Item, kept: list[str]) -> np.ndarray:
        clipped, problems = checked_boxes(self.boxes.of(item.id, item.pixels), item.pixels.shape[:2])
        for problem in filter(None, problems):
            self.report(f"{item.title} (image {item.id}): {problem}", kept)
        return clipped[[not problem for problem in problems]]


def _rows(entry: Entry, joints: int) -> np.ndarray:
    """(N, J, 3) x, y and score of the persons of an image."""
    return np.array([row["keypoints"] for row in entry["results"]], np.float64).reshape(-1, joints, 3)


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


def step_titles(predictor: Predictor) -> list[str]:
    """The titles of a denoising, see `Predictor.trace`: its start, then every step."""
    (settings,) = predictor.sampler.settings
    return [settings.start.replace("_", " "), *(f"step {k}" for k in range(1, settings.steps + 1))]
