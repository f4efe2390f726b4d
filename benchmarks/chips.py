"""Cloud TPU chips with their limits and slices, from cloud.google.com/tpu/docs/KIND, and slices to compile for."""

import importlib.util
import math
import os
from typing import NamedTuple

import jax
from jax.experimental import topologies

from dpose_jax.runtime import sharding


class Chip(NamedTuple):
    """One chip, with the figures of its page."""

    kind: str
    hbm_bytes: int
    hbm_bandwidth: float  # bytes a second
    flops: float  # peak a second in bfloat16, which float32 products use too by default
    host: tuple[int, ...]  # chips of one host
    shapes: tuple[str, ...]  # slices of up to 256 chips


_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBOIDS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
CHIPS = {
    "v5e": Chip("v5e", 16 * 2**30, 819e9, 197e12, (2, 2), _PLANE),
    "v5p": Chip("v5p", 95 * 2**30, 2765e9, 459e12, (2, 2, 1), _CUBOIDS),
    "v6e": Chip("v6e", 32 * 2**30, 1638e9, 918e12, (2, 2), _PLANE),
}


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the shape of a slice KIND:SHAPE, such as v5e:4x4. Raises ValueError if there is no such slice."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].shapes:
        known = "; ".join(f"{chip.kind}: {', '.join(chip.shapes)}" for chip in CHIPS.values())
        raise ValueError(f"--topology={name!r}: must be KIND:SHAPE, one of {known}")
    return CHIPS[kind], tuple(int(side) for side in shape.split("x"))


def slice_mesh(chip: Chip, shape: tuple[int, ...]) -> jax.sharding.Mesh:
    """A mesh over the chips of a slice that is only described: programs can be compiled for it, not run.

    Raises:
      ValueError: if there is no libtpu, or it cannot compile for such a slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the TPU compiler is not installed: pip install -e '.[topology]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU VM to query
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is held, so two processes may compile at a time
    options = {}
    if math.prod(shape) < math.prod(chip.host):
        options["chips_per_host_bounds"] = (*shape, *[1] * (3 - len(shape)))
    name = f"{chip.kind}:{'x'.join(map(str, shape))}"
    try:
        described = topologies.get_topology_desc(name, platform="tpu", **options)
    except Exception as error:
        raise ValueError(f"--topology={name}: this libtpu cannot describe it: {error}") from error
    return sharding.make_mesh(list(described.devices))
