"""Boxes of persons by a detector of torchvision, the extra `detector`; downloaded where one is asked for by name."""

import http.client
import os
import re
from typing import Any, NamedTuple

import numpy as np

from dpose_jax.inference.boxes import BoxSource
from dpose_jax.inference.images import shrink
from dpose_jax.models.weights import hub
from dpose_jax.typed_fields import nearest
from dpose_jax.workdir.files import sha256


class Published(NamedTuple):
    """A model of torchvision whose weights for COCO's 91 categories torchvision publishes."""

    model: str  # torchvision's name
    megabytes: int  # of the download, about
    ap: float  # of all boxes on COCO val2017, in points, as torchvision reports


# The most accurate first. Not fasterrcnn_resnet50_fpn and retinanet_resnet50_fpn: torchvision's weights of these need
# another epsilon of BatchNorm than a model has that is built without them.
DETECTORS = {
    "fasterrcnn": Published("fasterrcnn_resnet50_fpn_v2", 167, 46.7),
    "retinanet": Published("retinanet_resnet50_fpn_v2", 146, 41.5),
    "fcos": Published("fcos_resnet50_fpn", 124, 39.2),
    "fasterrcnn_mobilenet": Published("fasterrcnn_mobilenet_v3_large_fpn", 74, 32.8),
    "ssd": Published("ssd300_vgg16", 136, 25.1),
    "fasterrcnn_mobilenet_320": Published("fasterrcnn_mobilenet_v3_large_320_fpn", 74, 22.8),
    "ssdlite": Published("ssdlite320_mobilenet_v3_large", 13, 21.3),
}
MODELS = tuple(each.model for each in DETECTORS.values())
PERSON = 1  # of COCO's 91 categories, in which 0 is the background
# The models scale every image to 1,333 pixels or fewer themselves, but as floats; a side below 16 pixels could vanish.
MAX_SIDE, MIN_SIDE = 2048, 16


def find(name: str) -> Published | None:
    """The detector of this name, short or torchvision's; None where there is none."""
    return next((each for short, each in DETECTORS.items() if name in (short, each.model)), None)


def fetch(name: str, published: Published) -> str:
    """The file of torchvision's weights, in PyTorch's cache or downloaded once; prints which, before it downloads.

    Its SHA-256 must begin as torchvision's name for it says; ValueError if not. Raises ConnectionError if there is no
    such file and the address does not give it.
    """
    import torch
    from torchvision.models import get_model_weights

    url, field = get_model_weights(published.model).DEFAULT.url, f"detector {name!r}"
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    there = os.path.isfile(path)
    about = f"torchvision's {published.model}, trained on COCO 2017, box AP {published.ap} by its authors"
    print(f"{field}: {'in the cache' if there else f'downloading {published.megabytes} MB from {url}, once'}: {about}")
    if not there:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, path, progress=False)
        except (OSError, http.client.HTTPException) as error:
            ways = "--detector=FILE reads weights that you have, --boxes=FILE takes boxes"
            raise ConnectionError(f"{field}: {url} gives no file: {error}; {ways}") from error
    told, found = re.search(r"-([0-9a-f]{8,})\.", os.path.basename(url)), sha256(path)
    if told is None or not found.startswith(told[1]):
        expected = f"expected {told[1]}… of {url}" if told else f"{url} names none"
        raise ValueError(f"{field}: {path} has SHA-256 {found}, {expected}; delete it to download it again")
    return path


class Detector(BoxSource):
    """The persons that a detector finds; on the GPU where PyTorch has one."""

    takes_whole = False

    def __init__(self, source: str, model: str | None = None, min_score: float = 0.5):
        """Builds the model and reads its weights; see `fetch` for what may be downloaded and raised.

        `source` is a name of DETECTORS or MODELS, or a file: the state dict of `model`, by default the first, for
        COCO's 91 categories, as safetensors or as a PyTorch file. Nothing of a file is executed. Raises
        FileNotFoundError if there is no such file, and ValueError if it does not hold the model's weights, the model is
        unknown or given beside a name, or torchvision is not installed.
        """
        super().__init__(min_score)
        named, told = find(source), find(model or MODELS[0])
        if named and model:
            raise ValueError(f"detector_model={model!r}: is for --detector=FILE; {source!r} is a model's name")
        if told is None:
            raise ValueError(f"detector_model={model!r}: must be one of {', '.join(MODELS)}")
        if not named and not os.path.isfile(source):
            names = f"names are {', '.join(DETECTORS)}{nearest(source, [*DETECTORS, *MODELS])}"
            raise FileNotFoundError(f"detector={source!r}: no such file; {names}")
        try:
            import torch
            from torchvision.models import get_model
        except ImportError:
            raise ValueError(f'detector={source!r}: needs the detector extra: pip install -e ".[detector]"') from None
        self._torch, self._device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        path, name = (fetch(source, named), named.model) if named else (source, told.model)
        self.digest = f"{sha256(path)} {name}"
        state = {key: torch.tensor(value) for key, value in hub.read(path).tensors.items()}
        self._model: Any = get_model(name, weights=None, weights_backbone=None).eval().to(self._device)
        try:
            self._model.load_state_dict(state)
        except RuntimeError as error:  # a title, then lines of what is missing, more, or of another shape
            wanted, problem = f"detector_model={name!r} with COCO's 91 categories", str(error).split("\n")[1].strip()
            raise ValueError(f"detector={source!r}: not the weights of {wanted}: {problem[:200]}") from error

    def of(self, image_id: int, pixels: np.ndarray) -> np.ndarray:
        """(N, 5) float64, x, y, width, height in image pixels and score in [0, 1], the highest score first; N may be 0.

        An image of which a side is below 16 pixels, after its longer one is shrunk to 2,048, is taken to hold nobody.
        Raises ValueError where PyTorch cannot run the model on its device.
        """
        small = shrink(pixels, MAX_SIDE)
        if min(small.shape[:2]) < MIN_SIDE:
            return np.zeros((0, 5))
        image = self._torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))).to(self._device)
        try:
            with self._torch.inference_mode():
                found = self._model([image / 255])[0]
        except RuntimeError as error:  # as of a torchvision that was built without CUDA, or of exhausted memory
            raise ValueError(f"detector on {self._device!r}: {str(error).splitlines()[0]}") from error
        labels, scores, corners = (found[key].cpu().numpy() for key in ("labels", "scores", "boxes"))
        corners = corners.astype(np.float64) * np.tile(np.divide(pixels.shape[1::-1], small.shape[1::-1]), 2)
        sizes = corners[:, 2:] - corners[:, :2]
        # Clipped to the image, a box may have lost its area.
        kept = (labels == PERSON) & (scores >= self.min_score) & (sizes > 0).all(axis=1)
        rows = np.concatenate([corners[:, :2], sizes, scores[:, None]], axis=1)[kept]
        return rows[np.argsort(-rows[:, 4], kind="stable")]
