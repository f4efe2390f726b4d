"""The names of the backbone's weights that official HRNet, timm and mmpose share, and which of ours they are."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from dpose_jax.models.hrnet import HRNetSpec
from dpose_jax.models.weights.fill import BACKBONE, Weights

# A convolution and its BatchNorm there -> a ConvBN of ours; # is a number, in the same order on both sides.
LAYERS = (
    ("conv#", "bn#", "stem#"),
    ("layer1.#.conv#", "layer1.#.bn#", "stage1_block#/conv#"),
    ("layer1.#.downsample.0", "layer1.#.downsample.1", "stage1_block#/downsample"),
    ("transition#.0.0", "transition#.0.1", "transition#_0"),
    ("transition#.#.0.0", "transition#.#.0.1", "transition#_#"),
    ("stage#.#.branches.#.#.conv#", "stage#.#.branches.#.#.bn#", "stage#_module#/branch#_block#/conv#"),
    ("stage#.#.fuse_layers.#.#.0", "stage#.#.fuse_layers.#.#.1", "stage#_module#/fuse#_#"),
    ("stage#.#.fuse_layers.#.#.#.0", "stage#.#.fuse_layers.#.#.#.1", "stage#_module#/fuse#_#_#"),
)
# An array of such a layer -> collection and name of ours, and the permutation of its axes.
Leaves = Mapping[str, tuple[str, str, tuple[int, ...]]]
CONVOLUTION: Leaves = {"weight": ("params", "kernel", (2, 3, 1, 0)), "bias": ("params", "bias", (0,))}
BATCH_NORM: Leaves = {
    "weight": ("params", "scale", (0,)), "bias": ("params", "bias", (0,)),
    "running_mean": ("batch_stats", "mean", (0,)), "running_var": ("batch_stats", "var", (0,)),
}  # fmt: skip
BACKBONE_PREFIX = r"(?:module\.)?(?:backbone\.)?"  # of torch's DataParallel, of mmpose
FINAL_LAYER = r"(?:module\.)?(?:(?:keypoint_)?head\.)?final_layer"  # mmpose 0.x: keypoint_head, 1.x: head
CLASSIFIER = BACKBONE_PREFIX + r"(?:(?:incre_modules|downsamp_modules|classifier)\..*|final_layer\.[01]\..*)"
IGNORED = {"classification head": CLASSIFIER, "BatchNorm's step counters": r".*\.num_batches_tracked"}
# Official name of a layer -> path of ours, and leaves. # is a number.
OFFICIAL: list[tuple[str, str, Leaves]] = [("final_layer", "coarse_head", CONVOLUTION)]
for convolution, norm, path in LAYERS:
    OFFICIAL.append((convolution, f"{BACKBONE}/{path}/conv", CONVOLUTION))
    OFFICIAL.append((norm, f"{BACKBONE}/{path}/bn", BATCH_NORM))


def _pattern(template: str) -> str:
    return re.escape(template).replace(r"\#", r"(\d+)")


# Pattern of a published layer's name -> path of ours with # for its groups, and leaves.
RULES = {
    FINAL_LAYER if theirs == "final_layer" else BACKBONE_PREFIX + _pattern(theirs): (ours, leaves)
    for theirs, ours, leaves in OFFICIAL
}


def from_published(tensors: Mapping[str, np.ndarray], spec: HRNetSpec) -> Weights:
    """Tensors by the names of official HRNet, timm or mmpose, in torch's layout -> ours."""
    # The last module of an ImageNet model makes all resolutions, that of a pose model the highest alone.
    lower = rf"{BACKBONE_PREFIX}stage4\.{spec.modules[2] - 1}\.fuse_layers\.[1-9]\d*\..*"
    ignored = IGNORED | {"lower resolutions": lower}
    found = Weights()
    for name, tensor in tensors.items():
        reason = next((reason for reason, pattern in ignored.items() if re.fullmatch(pattern, name)), None)
        path, axes = _translate(name)
        if reason is not None:
            found.ignored[reason] += 1
        # A second name of the same array, too, is not what any of them writes.
        elif not path or len(axes) != tensor.ndim or path in found.arrays:
            found.unexpected.append(name)
        else:
            array = tensor.transpose(axes)
            # A 1 x 1 convolution of ours is a matrix product.
            found.arrays[path] = array[0, 0] if array.shape[:2] == (1, 1) and array.ndim == 4 else array
            found.names[path] = name
    return found


def _translate(name: str) -> tuple[str, tuple[int, ...]]:
    """A published name -> our path and the permutation of its axes; an empty path where no rule knows the name."""
    layer, _, leaf = name.rpartition(".")
    for pattern, (path, leaves) in RULES.items():
        match = re.fullmatch(pattern, layer)
        if match and leaf in leaves:
            collection, ours, axes = leaves[leaf]
            for number in match.groups():
                path = path.replace("#", number, 1)
            return f"{collection}/{path}/{ours}", axes
    return "", ()


def to_official(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """HRNet and coarse branch of our `params` and `batch_stats` by the official names, in torch's layout, float32.

    `from_published` backwards. Raises ValueError if an array has no official name, as those of another backbone.
    """
    found = {}
    for path, array in flatten_dict(variables, sep="/").items():
        if path.split("/")[1] in (BACKBONE, "coarse_head"):
            name, axes = _official_name(path)
            array = np.asarray(array, np.float32)
            array = array[None, None] if len(axes) == array.ndim + 2 else array  # a 1 x 1 convolution
            found[name] = np.ascontiguousarray(array.transpose(np.argsort(axes)))
    return found


def _official_name(path: str) -> tuple[str, tuple[int, ...]]:
    """Our path -> the official name, and the permutation of its axes that gives ours."""
    collection, _, rest = path.partition("/")
    layer, _, name = rest.rpartition("/")
    for theirs, ours, leaves in OFFICIAL:
        match = re.fullmatch(_pattern(ours), layer)
        for leaf, (its_collection, its_name, axes) in leaves.items():
            if match and (its_collection, its_name) == (collection, name):
                for number in match.groups():
                    theirs = theirs.replace("#", number, 1)
                return f"{theirs}.{leaf}", axes
    raise ValueError(f"{path}: official HRNet has no such array")
