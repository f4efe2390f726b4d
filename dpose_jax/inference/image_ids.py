"""Which image is which: ids of image files, and names of another file that mean them. Nothing is matched by order."""

import collections
import itertools
import os
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from dpose_jax.data.coco_format import is_image_id
from dpose_jax.data.image_files import parts, plain_name

# The names of COCO's releases: 000000000139 and COCO_val2014_000000000139.
_CALLED_BY_NUMBER = re.compile(r"(?:COCO_[a-z]+20\d\d_)?([0-9]+)")
_ENDS_IN_NUMBER = re.compile(r".*?([0-9]+)", re.DOTALL)


def natural(name: str) -> list[Any]:
    """The key that sorts `img2` before `img10`."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def number_of(name: str, *, at_end: bool = False) -> int | None:
    """The number that an image file is called by, as COCO's are, or with `at_end` the one that ends its name."""
    pattern = _ENDS_IN_NUMBER if at_end else _CALLED_BY_NUMBER
    found = pattern.fullmatch(os.path.splitext(os.path.basename(name))[0])
    number = int(found[1]) if found and len(found[1]) < 20 else None
    return number if is_image_id(number) else None


def number_images(names: Sequence[str], taken: Iterable[int] = ()) -> list[int]:
    """Ids of image files: the number that one is called by, where it is not `taken` and no other is called so.

    The others get the next numbers above all these, in their order.
    """
    numbers, taken = [number_of(name) for name in names], set(taken)
    counts = collections.Counter(numbers)
    own = [n if n is not None and counts[n] == 1 and n not in taken else None for n in numbers]
    free = itertools.count(1 + max([0, *taken, *(n for n in own if n is not None)]))
    return [next(free) if n is None else n for n in own]


class NameIndex:
    """Paths of a file with a value each; finds those that mean an image."""

    def __init__(self, listed: Iterable[tuple[str, Hashable]]):
        self._by_name: dict[str, list[tuple[tuple[str, ...], Hashable]]] = {}
        for name, value in listed:
            if path := parts(plain_name(name)):
                self._by_name.setdefault(path[-1], []).append((path, value))

    def find(self, name: str, folder: str) -> set[Hashable]:
        """The values of a file that is called `name` from `folder` on: of the equal path.

        Without one, of the longest path with which the file's whole path ends; else of those that end with `name`.
        """
        own, whole = parts(name), parts(os.path.abspath(os.path.join(folder, name)))
        entries = self._by_name.get(own[-1], [])
        inside = [(path == own, len(path), value) for path, value in entries if whole[-len(path) :] == path]
        if inside:
            best = max(rank[:2] for rank in inside)
            return {value for *rank, value in inside if tuple(rank) == best}
        return {value for path, value in entries if path[-len(own) :] == own}
