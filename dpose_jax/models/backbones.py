"""Backbones: a new one is a file with its module and one entry of BACKBONES."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from dpose_jax.models.hrnet import HRNet, HRNetSpec
from dpose_jax.models.weights import hrnet_keys
from dpose_jax.models.weights.fill import Weights
from dpose_jax.recipe import Model


def he_fan_out(path: tuple[str, ...], shape: tuple[int, ...]) -> float | None:
    """Standard deviation of He's normal over the fan-out for a `kernel`, None for any other leaf."""
    return float(np.sqrt(2 / (np.prod(shape) / shape[-2]))) if path[-1] == "kernel" else None


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What the rest of the code knows of a backbone."""

    width: int  # channels of x^fea; `model.width` replaces it
    # (width, dtype, remat, packed) -> a module that makes x^fea (B, Hx/4, Wx/4, width) in `dtype` of normalised images
    # (B, Hx, Wx, 3) and `train`. `remat` asks to save memory in the backward pass, `packed` to fill a TPU's lanes.
    build: Callable[[int, Any, bool, bool], nn.Module]
    imagenet: str | None = None  # repository of published ImageNet weights on the Hugging Face Hub
    # Tensors of published weights by their names -> ours; None where no names are known.
    published: Callable[[Mapping[str, np.ndarray]], Weights] | None = None
    # Path and shape of a leaf -> standard deviation of its normal start, None if there is no rule.
    initial_std: Callable[[tuple[str, ...], tuple[int, ...]], float | None] = he_fan_out
    # Of the summary: name, expression of paths in the backbone.
    parts: tuple[tuple[str, str], ...] = (("backbone", ""),)
    # What `build` depends on beside its arguments and the code that it is of; see `workdir.once.facts_of`.
    spec: HRNetSpec | None = None


def hrnet_backbone(spec: HRNetSpec, imagenet: str | None = None) -> Backbone:
    """The backbone of an HRNet with these numbers."""
    stages = ((f"HRNet stage {k}", f"stage{k}_|transition{k - 1}_") for k in (2, 3, 4))
    parts = ("HRNet stem", "stem"), ("HRNet stage 1", "stage1_"), *stages
    published = functools.partial(hrnet_keys.from_published, spec=spec)

    def build(width, dtype, remat, packed):
        return HRNet(dataclasses.replace(spec, width=width), dtype, remat, packed)

    return Backbone(spec.width, build, imagenet, published, parts=parts, spec=spec)


SMALL = HRNetSpec(16, modules=(1, 1, 1), blocks=2, stem_blocks=1, stem_width=32)
# timm's repositories hold the official ImageNet weights.
BACKBONES = {
    "tiny": hrnet_backbone(dataclasses.replace(SMALL, stem=32, stem_width=16)),
    "w18_small": hrnet_backbone(SMALL, "timm/hrnet_w18_small.ms_in1k"),
    "w32": hrnet_backbone(HRNetSpec(32), "timm/hrnet_w32.ms_in1k"),
    "w48": hrnet_backbone(HRNetSpec(48), "timm/hrnet_w48.ms_in1k"),
}


def get_backbone(model: Model) -> Backbone:
    """The backbone of a recipe, with the recipe's width. Raises ValueError if `model.backbone` is unknown."""
    if model.backbone not in BACKBONES:
        raise ValueError(f"model.backbone={model.backbone!r}: must be one of {sorted(BACKBONES)}")
    backbone = BACKBONES[model.backbone]
    return backbone if model.width is None else dataclasses.replace(backbone, width=model.width)
