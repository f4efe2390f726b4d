"""Which category of a COCO-format file is the person: one rule for training, boxes, prediction and scoring (ours)."""

import collections
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dpose_jax.data.sample import PERSON_CATEGORY

PERSON = "person"


class Category(NamedTuple):
    """A category of a file."""

    id: int
    name: str
    keypoints: tuple[str, ...] = ()  # the names of its joints

    def __str__(self) -> str:
        return f"{self.id} {self.name!r}"


def listed_categories(categories: Any) -> list[Category]:
    """The entries of a file's `categories` with an integer id, 0 to 2**63 - 1; none where the value is no list."""
    found = []
    for entry in categories if isinstance(categories, list) else []:
        number = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63:
            joints, name = entry.get("keypoints"), entry.get("name")
            joints = tuple(map(str, joints)) if isinstance(joints, list) else ()
            found.append(Category(number, name if isinstance(name, str) else "", joints))
    return list(dict.fromkeys(found))


def person_category(listed: list[Category], wanted: str | None, file: str, field: str) -> Category:
    """The person among the categories that a file lists.

    It is the one that `wanted` names, by its name or else by its id. Without `wanted` it is the only one with
    `keypoints`. Where none has any, it is the one called "person", in any case, else the only one.

    Raises ValueError, which names `file`, the `field` that decides, and three candidates, if that is not one category,
    or another one has its id.
    """
    found = _the_person(listed, wanted, file, field)
    if same := [category for category in listed if category.id == found.id and category != found]:
        raise ValueError(f"{file}: categories {found} and {same[0]} have the same id; renumber them")
    return found


def _the_person(listed: list[Category], wanted: str | None, file: str, field: str) -> Category:
    if wanted is not None:
        exact, named = (
            [c for c in listed if c.name == wanted],
            [c for c in listed if c.name.lower() == wanted.lower()],
        )
        for found in (exact, named, [c for c in listed if str(c.id) == wanted]):
            if len(found) == 1:
                return found[0]
        near = closest(wanted, [word for c in listed for word in (c.name, str(c.id))])
        shown = dict.fromkeys(str(c) for word in near for c in listed if word in (c.name, str(c.id)))
        raise ValueError(f"{file}: {field}={wanted!r}: no such category; {_closest(shown)}")
    for some in ([c for c in listed if c.keypoints], [c for c in listed if c.name.lower() == PERSON], listed):
        if len(some) == 1:
            return some[0]
        if some:
            reason = "have keypoints" if some[0].keypoints else "could be the person"
            first = ", ".join(map(str, some[:3]))
            raise ValueError(f"{file}: {len(some)} categories {reason}: {first}; choose one by {field}")
    raise ValueError(f"{file}: lists no category with an integer id from 0 to 2**63 - 1")


def person_id(counts: Mapping[int, int], wanted: str | None, file: str, field: str) -> int:
    """The person's id in a file that lists no categories, from the number of entries by id.

    It is `wanted`, else the only id, else COCO's 1. Several ids with a 0 are not COCO's, so none is taken. Raises
    ValueError as `person_category`.
    """
    ids = sorted(counts, key=lambda number: -counts[number])
    if wanted is not None:
        found = [number for number in ids if str(number) == wanted]
        if not found and ids:
            reason = "the file has no such category id (and lists no names)"
            raise ValueError(f"{file}: {field}={wanted!r}: {reason}; {_closest(map(str, ids))}")
        return found[0] if found else PERSON_CATEGORY
    if len(ids) == 1:
        return ids[0]
    if ids and (PERSON_CATEGORY not in counts or 0 in counts):
        shown = ", ".join(f"{number} ({counts[number]} entries)" for number in ids[:3])
        raise ValueError(f"{file}: which category id is the person? It has {shown}; choose one by {field}")
    return PERSON_CATEGORY


def detected_id(counts: Mapping[int, int], person: Category, listed: Iterable[int], file: str) -> int:
    """The person's id in detections for annotations, whose person is `person` among the `listed` ids.

    It is the same id, else the only id of the detections if the annotations do not list it. Raises ValueError if there
    is neither.
    """
    if person.id in counts or not counts:
        return person.id
    if len(counts) == 1 and not set(counts) & set(listed):
        return next(iter(counts))
    shown = ", ".join(f"{number} ({count})" for number, count in collections.Counter(dict(counts)).most_common(3))
    raise ValueError(f"{file}: no detection has the category of the annotations, {person}; it has {shown}")


def closest(name: str, known: Iterable[str]) -> list[str]:
    """The three known names that are most like a name; the most similar first."""
    return difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.0)


def _closest(names: Iterable[str]) -> str:
    return f"closest: {', '.join(list(names)[:3]) or 'none'}"
