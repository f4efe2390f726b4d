"""Weights and images of the parity checks, from names and seeds alone: only expected outputs need to be stored."""

import json
import pathlib
import zlib

import numpy as np

from dpose_jax.models.backbones import BACKBONES

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "hrnet_parity.npz"
PRESETS = ("w18_small", "w32", "w48")
SIZES = ((256, 192), (384, 288))
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # torchvision's, of images in [0, 1]


def spec_of(preset):
    """The HRNetSpec of a backbone."""
    backbone = BACKBONES[preset]
    return backbone.build(backbone.width, np.float32, False, False).spec


def stored_weights(preset, layout):
    """Weights of a preset by the names of a `layout`, pose (official) or imagenet (timm), without torch."""
    with np.load(FIXTURE) as fixture:
        return draw_weights(json.loads(fixture[f"{preset}/{layout}"].tobytes()))


def draw_weights(shapes):
    """{torch name: shape} -> {torch name: float32 array}; statistics and scales are away from their defaults."""
    return {name: _draw(name, tuple(shape)) for name, shape in shapes.items()}


def draw_image(size):
    """(1, Hx, Wx, 3) uint8: smooth noise, so that neighbouring pixels are alike as in a photograph."""
    coarse = np.random.Generator(np.random.Philox(1)).integers(0, 256, (1, size[0] // 8, size[1] // 8, 3))
    fine = np.random.Generator(np.random.Philox(2)).integers(-20, 21, (1, *size, 3))
    return np.clip(coarse.repeat(8, axis=1).repeat(8, axis=2) + fine, 0, 255).astype(np.uint8)


def sample(outputs, count=2000):
    """`count` values of an array, at places that its size alone decides: what the fixtures hold of it."""
    flat = np.asarray(outputs).ravel()
    return flat[np.random.Generator(np.random.Philox(3)).choice(flat.size, count, replace=False)]


def _draw(name, shape):
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.array(12345)
    noise = np.random.Generator(np.random.Philox(zlib.crc32(name.encode()))).standard_normal(shape, np.float32)
    if len(shape) > 1:
        return noise * np.float32(np.sqrt(1 / np.prod(shape[1:])))
    scale = leaf == "running_var" or (leaf == "weight" and "final_layer" not in name)
    return np.abs(1 + 0.2 * noise) if scale else 0.2 * noise
