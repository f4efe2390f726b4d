"""Boxes of persons by a detector of torchvision, the extra `detector`. The user fetches its weights."""

import os

import numpy as np

from dpose_jax.inference.boxes import BoxSource
from dpose_jax.inference.images import shrink
from dpose_jax.models.weights import hub

# The most accurate first. Not fasterrcnn_resnet50_fpn and retinanet_resnet50_fpn: torchvision's weights of these need
# another epsilon of BatchNorm than a model has that is built without them.
MODELS = (
    "fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn",
    "ssd300_vgg16", "fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
PERSON = 1  # of COCO's 91 categories, in which 0 is the background
# The models scale every image to 1,333 pixels or fewer themselves, but as floats; a side below 16 pixels could vanish.
MAX_SIDE, MIN_SIDE = 2048, 16


class Detector(BoxSource):
    """The persons that a detector finds; on the GPU where PyTorch has one."""

    def __init__(self, path: str, model: str = MODELS[0], min_score: float = 0.5):
        """Builds `model`, a name of MODELS, and reads its weights; nothing is downloaded.

        `path` is the state dict, for COCO's 91 categories, as safetensors or as a PyTorch file, of which nothing is
        executed. Raises FileNotFoundError if there is no such file, and ValueError if it does not hold the model's
        weights, the model is unknown, or torchvision is not installed.
        """
        super().__init__(min_score)
        if model not in MODELS:
            raise ValueError(f"detector_model={model!r}: must be one of {', '.join(MODELS)}")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"detector={path!r}: no such file")
        try:
            import torch
            from torchvision.models import get_model
        except ImportError:
            raise ValueError(f'detector={path!r}: needs the detector extra: pip install -e ".[detector]"') from None
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = get_model(model, weights=None, weights_backbone=None).eval().to(self._device)
        try:
            self._model.load_state_dict({name: torch.tensor(value) for name, value in hub.read(path).tensors.items()})
        except RuntimeError as error:  # a title, then lines of what is missing, more, or of another shape
            wanted, problem = f"detector_model={model!r} with COCO's 91 categories", str(error).split("\n")[1].strip()
            raise ValueError(f"detector={path!r}: not the weights of {wanted}: {problem[:200]}") from error

    def of(self, image_id: int, pixels: np.ndarray) -> np.ndarray:
        """(N, 5) float64, x, y, width, height in image pixels and score in [0, 1], the highest score first; N may be 0.

        An image of which a side is below 16 pixels, after its longer one is shrunk to 2,048, is taken to hold nobody.
        """
        small = shrink(pixels, MAX_SIDE)
        if min(small.shape[:2]) < MIN_SIDE:
            return np.zeros((0, 5))
        image = self._torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))).to(self._device)
        with self._torch.inference_mode():
            found = self._model([image / 255])[0]
        labels, scores, corners = (found[key].cpu().numpy() for key in ("labels", "scores", "boxes"))
        corners = corners.astype(np.float64) * np.tile(np.divide(pixels.shape[1::-1], small.shape[1::-1]), 2)
        sizes = corners[:, 2:] - corners[:, :2]
        # Clipped to the image, a box may have lost its area.
        kept = (labels == PERSON) & (scores >= self.min_score) & (sizes > 0).all(axis=1)
        rows = np.concatenate([corners[:, :2], sizes, scores[:, None]], axis=1)[kept]
        return rows[np.argsort(-rows[:, 4], kind="stable")]
