"""What the chips of Cloud TPU can do, and in which slices they come. From cloud.google.com/tpu/docs, a page a kind."""

import dataclasses
import math

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as its page gives it.

    Attributes:
      kind: its name; page: its page under cloud.google.com/tpu/docs.
      hbm_bytes: memory; hbm_bandwidth: of it, bytes a second.
      flops: peak, bfloat16, a second: float32 products too are made of bfloat16 ones by default.
      host: the chips of one host.
      shapes: the slices of up to 256 chips.
    """

    kind: str
    page: str
    hbm_bytes: int
    hbm_bandwidth: float
    flops: float
    host: tuple[int, ...]
    shapes: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("v5e", "v5e", 16 * GIB, 819e9, 197e12, (2, 2), _FLAT),
        Chip("v5p", "v5p", 95 * GIB, 2765e9, 459e12, (2, 2, 1), ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
             + ("4x4x4", "4x4x8", "4x8x8")),
        Chip("v6e", "v6e", 32 * GIB, 1638e9, 918e12, (2, 2), _FLAT),
    )
}  # fmt: skip


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the shape of a slice from KIND:SHAPE, such as v5e:4x4.

    Raises:
      ValueError: if there is no such slice; lists those that there are.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].shapes:
        known = "; ".join(f"{chip.kind}: {', '.join(chip.shapes)}" for chip in CHIPS.values())
        raise ValueError(f"--topology={name!r}: must be KIND:SHAPE, one of {known}")
    return CHIPS[kind], tuple(int(side) for side in shape.split("x"))


def count(shape: tuple[int, ...]) -> int:
    """Chips of a slice."""
    return math.prod(shape)
