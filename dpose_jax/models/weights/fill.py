"""Puts weights into a model's variables: by our paths, with a report of what does not fit."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

BACKBONE = "hrnet"  # the backbone in the trees of variables, whichever it is: stored models have this name
JOINT_LEAVES = ("coarse_head/", "decoder/stem/", "decoder/head/")  # what has an entry for every joint
SHOWN = 20  # names of each kind of problem


@dataclass
class Weights:
    """What a source holds: arrays by our path, `params/hrnet/stem1/conv/kernel`, in our layout."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # by the same path, what the source calls them
    unexpected: list[str] = field(default_factory=list)  # names that no rule knows
    ignored: Counter = field(default_factory=Counter)  # what was left out on purpose -> how many arrays


def from_own(variables: Mapping[str, Any], *, same_joints: bool) -> Weights:
    """`params` and `batch_stats` of a checkpoint of ours; without what belongs to its joints if they are others."""
    found = Weights()
    for path, array in flatten_dict(variables, sep="/").items():
        if not same_joints and path.partition("/")[2].startswith(JOINT_LEAVES):
            found.ignored["heads of other joints"] += 1
        else:
            found.arrays[path], found.names[path] = array, path
    return found


def fill(
    variables: Mapping[str, Any], weights: Weights, source: str, whole: tuple[str, ...] = (BACKBONE,)
) -> tuple[dict[str, Any], str]:
    """Puts `weights` into `variables` (`params`, `batch_stats`); modules of `whole` must come whole.

    Other modules take what fits them. Returns new variables, float32, and a line that says what was taken, left at its
    start and ignored. Raises ValueError, which names `source` and all problems, if a part of `whole` is missing or has
    another shape, an array is not finite, or the source holds what no rule knows.
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
        elif _module(path) not in whole:
            ignored[f"{_module(path)} of another shape"] += 1
        elif path in ours:
            problems["of another shape"].append(f"{weights.names[path]} {array.shape} instead of {ours[path].shape}")
        else:
            problems["unexpected"].append(weights.names[path])
    problems["missing"] = sorted(path for path in ours.keys() - weights.arrays.keys() if _module(path) in whole)
    if any(problems.values()):
        lines = [f"{source} does not fit the model:"]
        for kind, names in problems.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines += [f"  {len(names)} {kind}: {', '.join(names[:SHOWN])}{more}"] if names else []
        raise ValueError("\n".join(lines))
    # Modules of which nothing was taken by their name, others by the path of what is left.
    started, left = {_module(path) for path in taken}, ours.keys() - taken.keys()
    untouched = sorted({path.partition("/")[2] if _module(path) in started else _module(path) for path in left})
    text = f"{len(taken)} of {len(ours)} arrays from {source}"
    text += f"; at random: {', '.join(untouched)}" if untouched else ""
    text += "".join(f"; ignored: {count} of {reason}" for reason, count in sorted(ignored.items()))
    return unflatten_dict(ours | taken, sep="/"), text


def _module(path: str) -> str:
    return path.split("/")[1]
