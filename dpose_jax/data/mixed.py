"""Several sources as one, for training (ours)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpose_jax.data.jpeg_parts import Window
from dpose_jax.data.sample import Person, Source, read_part


class MixedSource:
    """Several sources as one, each with its share of the items; a `Source` (see sample.py) without ground truth.

    An epoch is as long as the source that is largest for its share; the items of the others come several times, evenly.
    """

    def __init__(self, sources: Mapping[str, Source], shares: Sequence[float]):
        """`sources` by their names in `data.mix`; `shares` are positive, one a source, their sum does not matter."""
        self.names, self.sources = tuple(sources), tuple(sources.values())
        parts = np.asarray(shares, np.float64) / sum(shares)
        length = max(len(source) / part for source, part in zip(self.sources, parts, strict=True))
        # Items of source k are k's own from _starts[k] on; the shuffle of the loader mixes them.
        self._starts = np.rint(np.concatenate([[0], np.cumsum(parts)]) * length).astype(int)

    def _find(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        k = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sources[k], (index - int(self._starts[k])) % len(self.sources[k])

    def __len__(self) -> int:
        """Number of items of an epoch."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Person:
        """The person at `index`; ids are those of its own source."""
        source, place = self._find(index)
        return source[place]

    def read_image(self, index: int) -> np.ndarray:
        """The image of that person, (height, width, 3) uint8 RGB; raises BadRecordError."""
        source, place = self._find(index)
        return source.read_image(place)

    def read_part(self, index: int, window: Window) -> np.ndarray:
        """As `sample.read_part`."""
        source, place = self._find(index)
        return read_part(source, place, window)

    def ground_truth(self) -> dict[str, Any]:
        """Raises ValueError: annotations of several sources have no common ids."""
        raise ValueError("data.mix: several sources are for training; evaluate one, with --config.data.mix=()")

    def report(self) -> dict[str, int]:
        """The counts of all sources."""
        total: dict[str, int] = {}
        for source in self.sources:
            for rule, count in source.report().items():
                total[rule] = total.get(rule, 0) + count
        return total
