"""Puts weights into a model's variables: by our paths, with a report of what does not fit."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

BACKBONE = "hrnet"  # the backbone in the trees of variables, whichever it is: stored models have this name
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


def _of_backbone(path: str) -> bool:
    return path.split("/")[1] == BACKBONE


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
