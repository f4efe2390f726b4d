"""Weights of published HRNets, and of our own checkpoints, into our model: tables of names, and what does not fit.

Official HRNet (its ImageNet and its pose models), timm and mmpose name the layers of the backbone alike, so one table
serves them all; what a file has beside the backbone differs, and is taken or left out by name.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dpose_jax.models.hrnet import HRNetSpec

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
    "weight": ("params", "scale", (0,)),
    "bias": ("params", "bias", (0,)),
    "running_mean": ("batch_stats", "mean", (0,)),
    "running_var": ("batch_stats", "var", (0,)),
}
BACKBONE_PREFIX = r"(?:module\.)?(?:backbone\.)?"  # of torch's DataParallel, of mmpose
FINAL_LAYER = r"(?:module\.)?(?:(?:keypoint_)?head\.)?final_layer"  # mmpose 0.x: keypoint_head, 1.x: head
IGNORED = {
    "classification head": BACKBONE_PREFIX
    + r"(?:(?:incre_modules|downsamp_modules|classifier)\..*|final_layer\.[01]\..*)",
    "BatchNorm's step counters": r".*\.num_batches_tracked",
}
# Of our own model, what has an entry for every joint.
JOINT_LEAVES = ("coarse_head/", "decoder/stem/", "decoder/head/")
SHOWN = 20  # names of each kind of problem


@dataclasses.dataclass
class Weights:
    """What a source holds.

    Attributes:
      arrays: by our path, `params/hrnet/stem1/conv/kernel`, in our layout.
      names: by the same path, what the source calls them.
      unexpected: names that no rule knows.
      ignored: what was left out on purpose -> how many arrays.
    """

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    unexpected: list[str] = dataclasses.field(default_factory=list)
    ignored: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def from_published(tensors: Mapping[str, np.ndarray], spec: HRNetSpec) -> Weights:
    """Tensors by the names of official HRNet, timm or mmpose, in torch's layout -> ours.

    An ImageNet model makes all resolutions in its last module where a pose model makes the highest alone; the rest is
    ignored.
    """
    last = spec.modules[2] - 1
    ignored = IGNORED | {"lower resolutions": rf"{BACKBONE_PREFIX}stage4\.{last}\.fuse_layers\.[1-9]\d*\..*"}
    found = Weights()
    for name, tensor in tensors.items():
        reason = next((reason for reason, pattern in ignored.items() if re.fullmatch(pattern, name)), None)
        if reason is not None:
            found.ignored[reason] += 1
            continue
        path, axes = _translate(name)
        # A second name of the same array, too, is not what any of them writes.
        if not path or len(axes) != tensor.ndim or path in found.arrays:
            found.unexpected.append(name)
            continue
        array = tensor.transpose(axes)
        # A 1 x 1 convolution of ours is a matrix product.
        found.arrays[path] = array[0, 0] if array.shape[:2] == (1, 1) and array.ndim == 4 else array
        found.names[path] = name
    return found


def from_own(variables: Mapping[str, Any], *, same_joints: bool) -> Weights:
    """`params` and `batch_stats` of a checkpoint of ours; without what belongs to its joints if they are others."""
    found = Weights()
    for path, array in flatten_dict(variables, sep="/").items():
        if not same_joints and path.partition("/")[2].startswith(JOINT_LEAVES):
            found.ignored["heads of other joints"] += 1
        else:
            found.arrays[path], found.names[path] = array, path
    return found


def fill(variables: Mapping[str, Any], weights: Weights, source: str) -> tuple[dict[str, Any], str]:
    """Puts `weights` into `variables` (`params`, `batch_stats`); the backbone must come whole, the rest where it fits.

    Args:
      source: what to call the weights in messages.

    Returns:
      new variables, float32, and a line that says what was taken, left at its start and ignored.

    Raises:
      ValueError: if a part of the backbone is missing, has another shape or is not finite, or if the source holds what
        no rule knows; names all of them.
    """
    ours = flatten_dict(variables, sep="/")
    taken: dict[str, np.ndarray] = {}
    problems: dict[str, list[str]] = {"unexpected": list(weights.unexpected), "of another shape": [], "not finite": []}
    ignored = weights.ignored.copy()
    for path, array in weights.arrays.items():
        if path in ours and array.shape == ours[path].shape:
            taken[path] = np.asarray(array, np.float32)
            if not np.isfinite(taken[path]).all():
                problems["not finite"].append(weights.names[path])
        elif not _of_backbone(path):
            ignored[f"{path.split('/')[1]} of another shape"] += 1
        elif path in ours:
            problems["of another shape"].append(f"{weights.names[path]} {array.shape} instead of {ours[path].shape}")
        else:
            problems["unexpected"].append(weights.names[path])
    backbone = {path for path in ours if _of_backbone(path)}
    problems["missing"] = sorted(backbone - set(weights.arrays))
    if any(problems.values()):
        raise ValueError(f"{source} does not fit the model:\n{_shown(problems)}")
    untouched = _shortened(ours.keys() - taken.keys(), taken.keys())
    text = f"{len(taken)} of {len(ours)} arrays from {source}"
    text += f"; at random: {', '.join(untouched)}" if untouched else ""
    text += "".join(f"; ignored: {count} of {reason}" for reason, count in sorted(ignored.items()))
    return unflatten_dict(ours | taken, sep="/"), text


def _rules():
    """(pattern of a layer's name, path of ours with # for its groups, leaves)."""
    for convolution, norm, path in LAYERS:
        for theirs, ours, leaves in ((convolution, "conv", CONVOLUTION), (norm, "bn", BATCH_NORM)):
            pattern = BACKBONE_PREFIX + re.escape(theirs).replace(r"\#", r"(\d+)")
            yield pattern, f"hrnet/{path}/{ours}", leaves
    yield FINAL_LAYER, "coarse_head", CONVOLUTION


RULES = tuple(_rules())


def _translate(name: str) -> tuple[str, tuple[int, ...]]:
    """A published name -> our path and the permutation of its axes; an empty path where no rule knows the name."""
    layer, _, leaf = name.rpartition(".")
    for pattern, path, leaves in RULES:
        match = re.fullmatch(pattern, layer)
        if match and leaf in leaves:
            collection, ours, axes = leaves[leaf]
            for number in match.groups():
                path = path.replace("#", number, 1)
            return f"{collection}/{path}/{ours}", axes
    return "", ()


def _of_backbone(path: str) -> bool:
    return path.split("/")[1] == "hrnet"


def _shown(problems: dict[str, list[str]]) -> str:
    lines = []
    for kind, names in problems.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"  {len(names)} {kind}: {', '.join(names[:SHOWN])}{more}")
    return "\n".join(lines)


def _shortened(untouched, taken) -> list[str]:
    """Modules of which nothing was taken by their name, others by the path of what is left."""
    started = {path.split("/")[1] for path in taken}
    paths = (path.partition("/")[2] for path in untouched)
    return sorted({path if path.split("/")[0] in started else path.split("/")[0] for path in paths})
