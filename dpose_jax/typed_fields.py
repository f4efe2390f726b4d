"""Sections: frozen dataclasses of plain values, checked at construction. An error names the field, value and rule."""

import dataclasses
import difflib
import functools
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

LARGEST = 2**53  # of an integer: what JSON's readers agree on
WORDS = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}


def _ruled(holds: Callable[[Any], bool], rule: str, default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"holds": holds, "rule": rule})


def at_least(low: float, default: Any) -> Any:
    """A field of at least `low`."""
    return _ruled(lambda value: value >= low, f"be at least {low}" if low else "not be negative", default)


def between(low: float, high: float, default: Any) -> Any:
    """A field in [low, high]: what an array's size or a loop's length grows with, so that no file takes all memory."""
    return _ruled(lambda value: low <= value <= high, f"lie in [{low}, {high}]", default)


def choice(default: Any, *others: Any) -> Any:
    """A field that is one of these values."""
    return _ruled(lambda value: value in (default, *others), f"be one of {(default, *others)}", default)


# Fields by their default.
positive = functools.partial(_ruled, lambda value: value > 0, "be positive")
share = functools.partial(_ruled, lambda value: 0 <= value <= 1, "lie in [0, 1]")
below_one = functools.partial(_ruled, lambda value: 0 <= value < 1, "lie in [0, 1)")
random_seed = functools.partial(_ruled, lambda value: 0 <= value < 2**32, "lie in [0, 2**32)", 0)


def fail(name: str, value: Any, rule: str) -> typing.NoReturn:
    """Raises the ValueError of a field: `name=value: must ...`."""
    raise ValueError(f"{name}={value!r:.120}: must {rule}")


@typing.dataclass_transform(frozen_default=True)
@dataclasses.dataclass(frozen=True)
class Section:
    """The base of sections, which become frozen dataclasses of (optional) scalars, tuples of scalars, and sections.

    Lists are read as tuples, integers as floats, mappings as sections, ~ as the home folder. Raises ValueError for a
    wrong type or range.
    """

    PREFIX: ClassVar[str] = ""  # of the names of its fields, such as `model.`

    def __init_subclass__(cls, prefix: str = ""):
        cls.PREFIX = prefix
        dataclasses.dataclass(frozen=True)(cls)

    def __post_init__(self):
        for field, kind in zip(dataclasses.fields(self), kinds(type(self)).values(), strict=True):
            name = self.PREFIX + field.name
            value = _convert(kind, getattr(self, field.name), name)
            object.__setattr__(self, field.name, value)
            if field.metadata and value is not None and not field.metadata["holds"](value):
                fail(name, value, field.metadata["rule"])
        self.check()

    def check(self) -> None:
        """Raises ValueError if fields contradict each other."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """A section from a mapping; a missing field takes its default, an unknown one raises ValueError."""
        for name in values:
            if name not in kinds(cls):
                full = f"{cls.PREFIX}{name}"
                raise ValueError(f"{full}: unknown field{nearest(full, cls.names())}")
        return cls(**values)

    @classmethod
    def names(cls) -> list[str]:
        """The dotted names of all fields, those of the sections inside too."""
        found = []
        for name, kind in kinds(cls).items():
            found += [cls.PREFIX + name, *(kind.names() if is_section(kind) else [])]
        return found

    def flatten(self) -> dict[str, Any]:
        """Every value by its dotted name."""
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            found |= value.flatten() if isinstance(value, Section) else {self.PREFIX + name: value}
        return found

    def override(self, values: Mapping[str, Any]) -> Self:
        """A copy with other values, by their dotted names; raises ValueError as `read` does."""
        flat = {name.removeprefix(self.PREFIX): value for name, value in (self.flatten() | dict(values)).items()}
        return type(self).read(unflatten(flat))


def kinds(section: type) -> dict[str, Any]:
    """The types of a section's fields, by name and in their order."""
    found = typing.get_type_hints(section)
    return {field.name: found[field.name] for field in dataclasses.fields(section)}


def is_section(kind: Any) -> bool:
    """Whether a field's type is a section."""
    return isinstance(kind, type) and issubclass(kind, Section)


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name as nested dicts; raises ValueError if a name lies inside one that has a plain value."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        inner = nested
        for depth, part in enumerate(path, 1):
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                fail(".".join(path[:depth]), inner, "be a section")
        inner[last] = value
    return nested


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?` with the most similar of the known names, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _convert(kind: Any, value: Any, name: str) -> Any:
    if is_section(kind):
        if not isinstance(value, Mapping | kind):
            fail(name, value, f"be a section with the fields {', '.join(kinds(kind))}")
        return value if isinstance(value, kind) else kind.read(value)
    if isinstance(kind, types.UnionType):
        first, *others = typing.get_args(kind)
        return value if isinstance(value, tuple(others)) else _convert(first, value, name)
    if typing.get_origin(kind) is not tuple:
        return _scalar(kind, value, f"{name}={value!r}")
    elements = typing.get_args(kind)
    if not isinstance(value, tuple | list):
        fail(name, value, "be a tuple")
    if elements[-1] is not Ellipsis and len(value) != len(elements):
        fail(name, tuple(value), f"be {len(elements)} numbers")
    return tuple(_scalar(elements[0], each, f"{name}={tuple(value)}: element {i}") for i, each in enumerate(value))


def _scalar(kind: type, value: Any, place: str) -> Any:
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{place[:120]}: must be {WORDS[kind]}")
    if kind in (int, float) and not abs(value) <= LARGEST:  # which NaN is not either
        raise ValueError(f"{place[:120]}: must be finite and at most 2**53 in size")
    if kind is str:
        return os.path.expanduser(value)  # no string but a path begins with ~
    return float(value) if kind is float else value
