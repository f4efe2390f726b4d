"""A page in the browser: drop a photo, mark or find people, choose the steps, watch the heatmaps denoise.

python -m dpose_jax.app [--workdir=runs/demo|--model=FOLDER|--weights=hrnet_w32] [--detector=FILE] [--port=7860]
(by default the bundled model)
"""

import functools
import html
import json
import os
import socket
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from absl import flags

# Before Gradio is imported: it would report its use to its makers.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
try:
    import fastapi
    import gradio as gr
    import uvicorn
    from starlette.datastructures import Headers
    from starlette.responses import PlainTextResponse
except ImportError:
    if __name__ != "__main__":
        raise
    sys.exit('error: the page needs the app extra: pip install -e ".[app]"')

from dpose_jax import Predictor
from dpose_jax.data.image_files import decode_image, read_file
from dpose_jax.data.image_headers import read_header
from dpose_jax.inference.boxes import BoxSource, checked_boxes
from dpose_jax.inference.detector import DETECTORS, Detector
from dpose_jax.inference.images import load_image, shrink
from dpose_jax.inference.poses import Poses, draw_persons
from dpose_jax.inference.predict_files import PICTURE_SIDE, step_titles
from dpose_jax.runtime import app
from dpose_jax.visualization import draw
from dpose_jax.workdir import weights_flags

FIRST_STEPS, MAX_STEPS, MAX_PERSONS = 4, 16, 4
PAUSE = 0.6  # seconds a step is shown
HEIGHT = 330  # of every picture, pixels: the whole page fits on a screen
# Not Gradio's third, which would send a picture to Hugging Face.
BUTTONS = ["download", "fullscreen"]
BOX_COLOR = (240, 228, 66)
# A photo is bounded as a file and, by its header, decoded; then pictures of a fixed size are made of it.
MAX_UPLOAD, MAX_PIXELS = 64_000_000, 100_000_000
KEPT = 3600  # seconds after which uploads and pictures are deleted
HOSTS = ("127.0.0.1", "localhost")


def read_photo(path: str | None) -> np.ndarray:
    """An uploaded photo, upright; ValueError if there is none, it is no image, or has more than MAX_PIXELS."""
    if path is None:
        raise ValueError("drop a photo first")
    try:
        header = read_header(data := read_file(path))
        if header is not None and header.size[0] * header.size[1] > MAX_PIXELS:
            raise ValueError(f"{header.size[0]} x {header.size[1]} pixels are more than {MAX_PIXELS:,}; shrink it")
        return load_image(decode_image(data, upright=True))
    except ValueError as error:
        raise ValueError(f"{os.path.basename(path)}: {error}") from error


def parse_boxes(text: str) -> list[list[float]] | None:
    """Boxes from lines of "x, y, width, height" and perhaps a score; None (the whole image) without a line.

    Returns rows x, y, width, height, score, which is 1 by default. ValueError names a bad line.
    """
    boxes = []
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            x, y, width, height, *scores = map(float, line.replace(",", " ").split())
            (score,) = scores or (1.0,)
        except ValueError as error:
            raise ValueError(f"box {line!r}: must be four numbers, x, y, width, height, and perhaps a score") from error
        boxes.append([x, y, width, height, score])
    return boxes or None


def add_corner(text: str, corner: list | None, point: tuple[float, float]) -> tuple[str, list | None]:
    """A click into the photo: the first is a corner of a box, the second the opposite one, which adds the box."""
    if corner is None or np.abs(np.subtract(point, corner)).min() < 1:
        return text, list(point)
    low, high = np.minimum(corner, point), np.maximum(corner, point)
    line = ", ".join(f"{value:g}" for value in [*low, *(high - low)])
    return f"{text.rstrip()}\n{line}".lstrip(), None


def undo(text: str, corner: list | None) -> tuple[str, None]:
    """Takes back the first corner of a box, else the last box."""
    return (text if corner is not None else "\n".join(text.rstrip().splitlines()[:-1])), None


def draw_boxes(image: np.ndarray, boxes, corner: list | None = None) -> np.ndarray:
    """The photo, shrunk to PICTURE_SIDE, with boxes (x, y, width, height, …) and a cross at the corner of the next."""
    small = np.ascontiguousarray(shrink(image, PICTURE_SIDE)).copy()
    scale, thick = max(small.shape[:2]) / max(image.shape[:2]), max(2, max(small.shape) // 300)
    for x, y, width, height in np.reshape([box[:4] for box in boxes or ()], (-1, 4)):
        corners = [int(round(value * scale)) for value in (x, y, x + width, y + height)]
        cv2.rectangle(small, corners[:2], corners[2:], BOX_COLOR, thick)
    if corner is not None:
        place = [int(round(value * scale)) for value in corner]
        cv2.drawMarker(small, place, BOX_COLOR, cv2.MARKER_CROSS, 10 * thick, thick)
    return small


def mark(image: np.ndarray, text: str, corner: list | None = None) -> np.ndarray:
    """The photo with the usable boxes of the text, and the corner of the next."""
    lines = []
    for line in text.splitlines():
        try:
            lines += parse_boxes(line) or []
        except ValueError:
            continue  # half typed
    boxes, problems = checked_boxes(lines, image.shape[:2])
    return draw_boxes(image, boxes[[not problem for problem in problems]].tolist(), corner)


def find_people(image: np.ndarray, detector: BoxSource) -> str:
    """Lines of x, y, width, height, score of the people that the detector finds; ValueError if there is nobody."""
    found = detector.of(0, image)
    if not len(found):
        raise ValueError("the detector finds nobody; click two opposite corners of each person")
    return "\n".join(", ".join(f"{value:.5g}" for value in row) for row in found)


def denoise(predictor: Predictor, image: np.ndarray, text: str) -> Iterator[tuple[Any, Any, str, Poses | None]]:
    """Yields picture of the step, photo with boxes and poses, a line of text, at the end poses; ValueError: bad box."""
    boxes = parse_boxes(text)
    if predictor.sampler.settings:
        crops, trajectory, joints = predictor.trace(image, boxes)
        persons = [slice(i, i + 1) for i in range(min(len(crops), MAX_PERSONS))]
        for k, title in enumerate(step_titles(predictor)):
            seen = [(crops[one], trajectory[k : k + 1, one], joints[k : k + 1, one]) for one in persons]
            about = predictor.joint_set, [title]
            strips = [draw.denoising_strip(*each, *about, warp=predictor.model.codec.name) for each in seen]
            yield np.concatenate(strips, axis=1), gr.skip(), title, None
            time.sleep(PAUSE)
    poses = predictor(image, boxes)
    scores = ", ".join(f"{score:.2f}" for score in poses.scores)
    summary = f"1 person, score {scores}" if len(poses) == 1 else f"{len(poses)} persons, scores {scores}"
    if boxes is None:
        summary += "; the whole photo was taken for one person: click two corners of each, or find people"
    marked = draw_boxes(image, boxes and poses.boxes.tolist())  # clipped: a box may be too large for OpenCV
    scale = max(marked.shape[:2]) / max(image.shape[:2])
    joints = (poses.keypoints + 0.5) * scale - 0.5
    yield gr.skip(), draw_persons(marked, joints, poses.keypoint_scores, poses.joint_set), summary, poses


def warm_up(predictor: Predictor) -> None:
    """Compiles what a click runs, for one person and for several."""
    blank = np.zeros((64, 64, 3), np.uint8)
    for count in (1, MAX_PERSONS):
        boxes = [[0, 0, 64, 64]] * count
        predictor(blank, boxes)
        if predictor.sampler.settings:
            predictor.trace(blank, boxes)


class Events:
    """What the page's buttons do; a user's slip is shown on the page, as a line."""

    def __init__(self, load: Callable[[int], Predictor], load_detector: Callable[[str], BoxSource]):
        self.load, self.load_detector = functools.cache(load), functools.cache(load_detector)
        self._folder = tempfile.TemporaryDirectory(prefix="dpose_jax_page_")
        self._ready = {FIRST_STEPS}

    @staticmethod
    def shown(event: Callable) -> Callable:
        """The event, an iterator, with the user's errors as Gradio's, which prints no traceback."""

        @functools.wraps(event)
        def run(*args):
            try:
                yield from event(*args)
            except (ValueError, OSError) as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from error

        return run

    def run(self, path, text, steps):
        image, steps = read_photo(path), int(steps)
        if steps not in self._ready:
            yield gr.skip(), gr.skip(), f"compiling for {steps} steps, once: up to a minute", gr.skip()
            self._ready.add(steps)
        for strip, drawn, line, poses in denoise(self.load(steps), image, text):
            yield strip, drawn, line, gr.skip() if poses is None else self._write(poses)

    def _write(self, poses: Poses) -> dict:
        path = os.path.join(self._folder.name, "poses.json")
        with open(path, "w") as file:
            json.dump(poses.to_dict(), file)
        return gr.update(value=path, interactive=True)

    def find(self, path, name):
        image = read_photo(path)
        text = find_people(image, self.load_detector(name))
        yield text, None, mark(image, text)

    def show(self, path, text, corner):
        yield gr.skip() if path is None else mark(read_photo(path), text, corner)

    def dropped(self, path):
        """What was marked and found belongs to the photo before."""
        yield "", None, None if path is None else draw_boxes(read_photo(path), None), None, "", gr.update(value=None)


def build(
    load: Callable[[int], Predictor], load_detector: Callable[[str], BoxSource] = Detector, *, about: str = "",
    plain: bool = False, detector: str | None = None,
) -> gr.Blocks:  # fmt: skip
    """The page; `load` gives the predictor of a number of steps, and is asked once for each.

    `about` says which model it is; `plain`, that it has no steps. `load_detector` gives a detector by name or file;
    `detector` is the one that is chosen at first.
    """
    events = Events(load, load_detector)
    names = [(f"{name} ({each.megabytes} MB, downloaded once)", name) for name, each in DETECTORS.items()]
    if detector and detector not in DETECTORS:
        names.append((os.path.basename(detector), detector))
    hint = "Drop a photo. Click two opposite corners of each person, find people, or take the whole photo as one."
    with gr.Blocks(title="dpose_jax", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(f"# dpose_jax\n{hint}\n\nModel: {html.escape(about)}", elem_id="about")
        corner = gr.State(None)
        with gr.Row():
            with gr.Column():
                photo = gr.Image(type="filepath", label="photo", elem_id="photo", height=HEIGHT, buttons=BUTTONS)
                # Not Gradio's, which decodes any size with Pillow.
                photo.preprocess = lambda payload: payload and payload.path
                boxes = gr.Textbox(label="boxes: x, y, width, height, a line each", lines=3, elem_id="boxes")
                with gr.Row():
                    back = gr.Button("Undo", size="sm", elem_id="undo")
                    clear = gr.Button("Clear", size="sm", elem_id="clear")
                    find = gr.Button("Find people by", size="sm", elem_id="find")
                    chosen = detector or next(iter(DETECTORS))
                    finder = gr.Dropdown(names, value=chosen, show_label=False, elem_id="detector")
                label = "steps (0: the coarse branch)"
                steps = gr.Slider(0, MAX_STEPS, value=FIRST_STEPS, step=1, label=label, visible=not plain)
                start = gr.Button("Denoise" if not plain else "Predict", variant="primary", elem_id="start")
            with gr.Column():
                shown = {"interactive": False, "height": HEIGHT, "buttons": BUTTONS}
                result = gr.Image(label="boxes, then poses", elem_id="result", **shown)
                strip = gr.Image(label="denoising", elem_id="strip", visible=not plain, **shown)
                state = gr.Textbox(label="state", interactive=False, elem_id="state")
                saved = gr.DownloadButton("poses.json", size="sm", interactive=False, elem_id="json")

        show = {"fn": events.shown(events.show), "inputs": [photo, boxes, corner], "outputs": result}
        photo.input(events.shown(events.dropped), photo, [boxes, corner, result, strip, state, saved])
        click = photo.select(_click, [boxes, corner], [boxes, corner], trigger_mode="multiple")
        for change in (click, back.click(undo, [boxes, corner], [boxes, corner])):
            change.then(**show, show_progress="hidden")
        clear.click(lambda: ("", None), None, [boxes, corner]).then(**show, show_progress="hidden")
        boxes.input(**show, show_progress="hidden", trigger_mode="always_last")
        find.click(events.shown(events.find), [photo, finder], [boxes, corner, result])
        start.click(events.shown(events.run), [photo, boxes, steps], [strip, result, state, saved])
    return page


def _click(text, corner, event: gr.SelectData):
    return add_corner(text, corner, event.index)


def _hostname(host: str) -> str | None:
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname
    except ValueError:  # half an IPv6 address
        return None


class OwnHost:
    """ASGI: answers 403 to a request for another host than this machine, or from a page of another origin."""

    def __init__(self, application):
        self._application = application

    async def __call__(self, scope, receive, send):
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            if _hostname(host) not in HOSTS or origin not in (None, f"http://{host}"):
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                    return
                text = f"only {' and '.join(HOSTS)}, and pages from there, may ask"
                return await PlainTextResponse(text, 403)(scope, receive, send)
        await self._application(scope, receive, send)


def server(page: gr.Blocks, port: int) -> tuple[uvicorn.Server, socket.socket]:
    """A server of the page for this machine, and its socket; OSError if the port is taken. Port 0 is any that is free.

    `server.run(sockets=[socket])` serves until a signal.
    """
    try:
        listening = socket.create_server((HOSTS[0], port))
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise OSError(f"--port={port}: {why}; is a page open already? Choose another") from error
    port = listening.getsockname()[1]
    whole = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None), page, path="/", server_name=HOSTS[0], server_port=port, footer_links=[],
        max_file_size=MAX_UPLOAD, ssr_mode=False, enable_monitoring=False,
    )  # fmt: skip
    # An open page never ends its stream of events.
    config = uvicorn.Config(OwnHost(whole), log_level="warning", timeout_graceful_shutdown=1)
    return uvicorn.Server(config), listening


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "A folder that was trained into.")
    MODEL = flags.DEFINE_string("model", None, "Instead of --workdir, a model folder.")
    WEIGHTS = weights_flags.define("Instead, a published HRNet")
    DETECTOR = flags.DEFINE_string("detector", None, f"Chosen at first: {', '.join(DETECTORS)}, or its file.")
    PORT = flags.DEFINE_integer("port", 7860, "On this machine alone: http://127.0.0.1:PORT.", 0, 65535)

    def load() -> Predictor:
        """The model that the flags name."""
        if WEIGHTS.value is None:
            return Predictor.load(WORKDIR.value, MODEL.value)
        if WORKDIR.value or MODEL.value:
            raise ValueError("--weights are a plain HRNet: give them without --workdir and --model")
        return Predictor.from_weights(WEIGHTS.value, **weights_flags.options())

    def main():
        """Loads and compiles the model, then serves the page."""
        model = load()
        about, plain, sizes = model.about, model.recipe.plain, (1, MAX_PERSONS)

        @functools.cache
        def of_steps(steps: int) -> Predictor:
            wanted = None if plain else steps
            return Predictor(model.recipe, model.variables, steps=wanted, batch_sizes=sizes, about=about)

        page = build(of_steps, about=about, plain=plain, detector=DETECTOR.value)
        serving, listening = server(page, PORT.value)
        print(f"model: {about}\ncompiling, a minute or two at the first start", flush=True)
        warm_up(of_steps(FIRST_STEPS))
        print(f"open http://{HOSTS[0]}:{listening.getsockname()[1]} (Ctrl-C ends the page)", flush=True)
        serving.run(sockets=[listening])

    app.run(main)
