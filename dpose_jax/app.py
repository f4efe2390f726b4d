"""A page in the browser: drop a photo, mark people, choose the steps, watch the heatmaps denoise.

python -m dpose_jax.app [--workdir=runs/demo] [--port=7860]

Without --workdir or --model it shows the small model that comes with the package.
"""

import functools
import os
import time
from collections.abc import Callable, Iterator

# Before Gradio is imported: it would report its use to its makers.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import cv2
import gradio as gr
import numpy as np
from absl import flags

from dpose_jax import Predictor, command_line, visualize
from dpose_jax.prediction.boxes import checked_boxes
from dpose_jax.prediction.run import draw_poses

MAX_STEPS, MAX_PERSONS = 16, 4
PAUSE = 0.6  # seconds a step is shown
BOX_COLOR = (240, 228, 66)


def parse_boxes(text: str) -> list[list[float]] | None:
    """Boxes from lines of "x, y, width, height"; None where there is no line, which means the whole image.

    Raises:
      ValueError: if a line is not four numbers; names it.
    """
    boxes = []
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            box = [float(part) for part in line.replace(",", " ").split()]
        except ValueError as error:
            raise ValueError(f"box {line!r}: must be four numbers, x, y, width, height") from error
        if len(box) != 4:
            raise ValueError(f"box {line!r}: must be four numbers, x, y, width, height")
        boxes.append(box)
    return boxes or None


def add_corner(text: str, corner: list | None, point: tuple[float, float]) -> tuple[str, list | None]:
    """A click into the photo: the first is a corner of a box, the second the opposite one, which adds the box."""
    if corner is None:
        return text, list(point)
    low, high = np.minimum(corner, point), np.maximum(corner, point)
    if (high - low).min() < 1:
        return text, list(point)
    line = ", ".join(f"{value:g}" for value in [*low, *(high - low)])
    return f"{text.rstrip()}\n{line}".lstrip(), None


def draw_boxes(image: np.ndarray, boxes: list[list[float]] | None) -> np.ndarray:
    """The photo with its boxes."""
    image = np.ascontiguousarray(image).copy()
    for x, y, width, height in boxes or ():
        corners = [int(round(value)) for value in (x, y, x + width, y + height)]
        cv2.rectangle(image, corners[:2], corners[2:], BOX_COLOR, max(1, max(image.shape) // 300))
    return image


def denoise(predictor: Predictor, image: np.ndarray | None, text: str) -> Iterator[tuple]:
    """What the page shows, again and again: (picture of the step, photo with poses or None, a line of text).

    Raises:
      ValueError: if there is no photo, or a box cannot be used.
    """
    if image is None:
        raise ValueError("drop a photo first")
    boxes, problems = checked_boxes(parse_boxes(text) or [[0, 0, *image.shape[1::-1]]], image.shape[:2])
    for problem in filter(None, problems):
        raise ValueError(problem)
    if predictor.settings is not None:
        crops, trajectory, joints = predictor.trace(image, boxes[:MAX_PERSONS])
        start = predictor.settings.start.replace("_", " ")
        for k in range(len(trajectory)):
            title, some = f"step {k}" if k else start, slice(k, k + 1)
            rows = (crops, trajectory[some], joints[some], predictor.joint_set, [title])
            yield visualize.denoising_strip(*rows, warp=predictor.model.codec.name), None, title
            time.sleep(PAUSE)
    poses = predictor(image, boxes)
    scores = ", ".join(f"{score:.2f}" for score in poses.scores)
    yield gr.skip(), draw_poses(image, poses), f"{len(poses)} persons, scores {scores}"


def build(load: Callable[[int], Predictor]) -> gr.Blocks:
    """The page.

    Args:
      load: number of steps -> predictor; each is loaded once.
    """
    load = functools.cache(load)

    def run(image, text, steps):
        try:
            yield from denoise(load(int(steps)), image, text)
        except ValueError as error:
            raise gr.Error(str(error)) from error

    def click(image, text, corner, event: gr.SelectData):
        text, corner = add_corner(text, corner, event.index)
        return text, corner, draw_boxes(image, parse_boxes(text))

    with gr.Blocks(title="dpose_jax", analytics_enabled=False) as page:
        gr.Markdown("# dpose_jax\nDrop a photo. Click two opposite corners of each person, or take the whole photo.")
        corner = gr.State(None)
        with gr.Row():
            with gr.Column():
                photo = gr.Image(type="numpy", label="photo", elem_id="photo")
                marked = gr.Image(label="boxes", interactive=False, elem_id="marked")
                boxes = gr.Textbox(label="boxes: x, y, width, height, a line each", lines=3, elem_id="boxes")
                steps = gr.Slider(0, MAX_STEPS, value=4, step=1, label="steps (0: the coarse branch)")
                start = gr.Button("Denoise", variant="primary", elem_id="start")
            with gr.Column():
                strip = gr.Image(label="denoising", interactive=False, elem_id="strip")
                result = gr.Image(label="poses", interactive=False, elem_id="result")
                told = gr.Textbox(label="state", interactive=False, elem_id="told")
        photo.select(click, [photo, boxes, corner], [boxes, corner, marked])
        start.click(run, [photo, boxes, steps], [strip, result, told])
    return page


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "A folder that was trained into.")
    MODEL = flags.DEFINE_string("model", None, "Instead of --workdir, a model folder.")
    PORT = flags.DEFINE_integer("port", 7860, "On this machine alone: http://127.0.0.1:PORT.")

    def main():
        sizes = (1, MAX_PERSONS)
        page = build(lambda steps: Predictor.load(WORKDIR.value, MODEL.value, steps=steps, batch_sizes=sizes))
        page.queue().launch(server_name="127.0.0.1", server_port=PORT.value, share=False)

    command_line.run(main)
