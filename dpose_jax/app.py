"""A page in the browser: drop a photo, mark people, choose the steps, watch the heatmaps denoise.

python -m dpose_jax.app [--workdir=runs/demo|--model=FOLDER] [--port=7860]    (by default the bundled model)
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from absl import flags

# Before Gradio is imported: it would report its use to its makers.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
try:
    import gradio as gr
except ImportError:
    if __name__ != "__main__":
        raise
    sys.exit('error: the page needs the app extra: pip install -e ".[app]"')

from dpose_jax import Predictor
from dpose_jax.inference.boxes import checked_boxes
from dpose_jax.inference.predict_files import step_titles
from dpose_jax.runtime import app
from dpose_jax.visualization import draw

MAX_STEPS, MAX_PERSONS = 16, 4
PAUSE = 0.6  # seconds a step is shown
HEIGHT = 330  # of every picture, pixels: the whole page fits on a screen
# Not Gradio's third, which would send a picture to Hugging Face.
BUTTONS = ["download", "fullscreen"]
BOX_COLOR = (240, 228, 66)


def parse_boxes(text: str) -> list[list[float]] | None:
    """Boxes from lines of "x, y, width, height"; None (the whole image) without a line. ValueError names a bad line."""
    boxes = []
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            x, y, width, height = map(float, line.replace(",", " ").split())
        except ValueError as error:
            raise ValueError(f"box {line!r}: must be four numbers, x, y, width, height") from error
        boxes.append([x, y, width, height])
    return boxes or None


def add_corner(text: str, corner: list | None, point: tuple[float, float]) -> tuple[str, list | None]:
    """A click into the photo: the first is a corner of a box, the second the opposite one, which adds the box."""
    if corner is None or np.abs(np.subtract(point, corner)).min() < 1:
        return text, list(point)
    low, high = np.minimum(corner, point), np.maximum(corner, point)
    line = ", ".join(f"{value:g}" for value in [*low, *(high - low)])
    return f"{text.rstrip()}\n{line}".lstrip(), None


def draw_boxes(image: np.ndarray, boxes: list[list[float]] | None) -> np.ndarray:
    """The photo with its boxes."""
    image = np.ascontiguousarray(image).copy()
    for x, y, width, height in boxes or ():
        corners = [int(round(value)) for value in (x, y, x + width, y + height)]
        cv2.rectangle(image, corners[:2], corners[2:], BOX_COLOR, max(2, max(image.shape) // 300))
    return image


def mark(image: np.ndarray | None, text: str):
    """The photo with the usable boxes of the text; nothing new without a photo, or with an unfinished line."""
    if image is None:
        return gr.skip()
    try:
        boxes, problems = checked_boxes(parse_boxes(text) or [], image.shape[:2])
    except ValueError:
        return gr.skip()
    return draw_boxes(image, boxes[[not problem for problem in problems], :4].tolist())


def denoise(predictor: Predictor, image: np.ndarray | None, text: str) -> Iterator[tuple]:
    """Yields picture of the step, photo with poses, a line of text; ValueError without a photo or for a bad box."""
    if image is None:
        raise ValueError("drop a photo first")
    boxes = parse_boxes(text)
    if predictor.sampler.settings:
        crops, trajectory, joints = predictor.trace(image, boxes)
        persons = [slice(i, i + 1) for i in range(min(len(crops), MAX_PERSONS))]
        for k, title in enumerate(step_titles(predictor)):
            seen = [(crops[one], trajectory[k : k + 1, one], joints[k : k + 1, one]) for one in persons]
            about = predictor.joint_set, [title]
            strips = [draw.denoising_strip(*each, *about, warp=predictor.model.codec.name) for each in seen]
            yield np.concatenate(strips, axis=1), gr.skip(), title
            time.sleep(PAUSE)
    poses = predictor(image, boxes)
    scores = ", ".join(f"{score:.2f}" for score in poses.scores)
    summary = f"1 person, score {scores}" if len(poses) == 1 else f"{len(poses)} persons, scores {scores}"
    yield gr.skip(), poses.draw(image), summary


def build(load: Callable[[int], Predictor]) -> gr.Blocks:
    """The page; `load` gives the predictor of a number of steps, and is asked once for each."""
    load = functools.cache(load)

    def run(image, text, steps):
        try:
            yield from denoise(load(int(steps)), image, text)
        except ValueError as error:
            raise gr.Error(str(error)) from error

    def click(image, text, corner, event: gr.SelectData):
        text, corner = add_corner(text, corner, event.index)
        return text, corner, mark(image, text)

    with gr.Blocks(title="dpose_jax", analytics_enabled=False) as page:
        gr.Markdown("# dpose_jax\nDrop a photo. Click two opposite corners of each person, or take the whole photo.")
        corner = gr.State(None)
        with gr.Row():
            with gr.Column():
                photo = gr.Image(type="numpy", label="photo", elem_id="photo", height=HEIGHT, buttons=BUTTONS)
                boxes = gr.Textbox(label="boxes: x, y, width, height, a line each", lines=3, elem_id="boxes")
                steps = gr.Slider(0, MAX_STEPS, value=4, step=1, label="steps (0: the coarse branch)")
                start = gr.Button("Denoise", variant="primary", elem_id="start")
                state = gr.Textbox(label="state", interactive=False, elem_id="state")
            with gr.Column():
                shown = {"interactive": False, "height": HEIGHT, "buttons": BUTTONS}
                result = gr.Image(label="boxes, then poses", elem_id="result", **shown)
                strip = gr.Image(label="denoising", elem_id="strip", **shown)
        # What was marked and found belongs to the photo before.
        photo.input(lambda image: ("", None, image, None, ""), photo, [boxes, corner, result, strip, state])
        photo.select(click, [photo, boxes, corner], [boxes, corner, result], trigger_mode="multiple")
        boxes.input(mark, [photo, boxes], result, show_progress="hidden", trigger_mode="always_last")
        start.click(run, [photo, boxes, steps], [strip, result, state])
    return page


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "A folder that was trained into.")
    MODEL = flags.DEFINE_string("model", None, "Instead of --workdir, a model folder.")
    PORT = flags.DEFINE_integer("port", 7860, "On this machine alone: http://127.0.0.1:PORT.")

    def main():
        sizes = (1, MAX_PERSONS)
        page = build(lambda steps: Predictor.load(WORKDIR.value, MODEL.value, steps=steps, batch_sizes=sizes))
        page.queue().launch(server_name="127.0.0.1", server_port=PORT.value, share=False)

    app.run(main)
