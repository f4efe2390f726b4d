"""Sections: frozen dataclasses of plain values, whose types and ranges are checked whoever builds them.

An error is one line that names the field by its dotted path, the value and what is allowed.
"""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

LARGEST = 2**53  # of an integer: what JSON's readers agree on
WORDS = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}


def _ruled(default: Any, holds: Callable[[Any], bool], text: str) -> Any:
    return dataclasses.field(default=default, metadata={"rule": (holds, text)})


def at_least(low: float, default: Any) -> Any:
    """A field of at least `low`."""
    return _ruled(default, lambda value: value >= low, f"be at least {low}" if low else "not be negative")


def positive(default: Any) -> Any:
    """A field above 0."""
    return _ruled(default, lambda value: value > 0, "be positive")


def share(default: float) -> Any:
    """A field in [0, 1]."""
    return _ruled(default, lambda value: 0 <= value <= 1, "lie in [0, 1]")


def below_one(default: float) -> Any:
    """A field in [0, 1)."""
    return _ruled(default, lambda value: 0 <= value < 1, "lie in [0, 1)")


def choice(default: str, *others: str) -> Any:
    """A field that is one of these strings."""
    return _ruled(default, lambda value: value in (default, *others), f"be one of {(default, *others)}")


def random_seed() -> Any:
    """A field of 32 bits, by default 0."""
    return _ruled(0, lambda value: 0 <= value < 2**32, "lie in [0, 2**32)")


def fail(name: str, value: Any, rule: str) -> typing.NoReturn:
    """Raises the ValueError of a field: `name=value: must ...`."""
    raise ValueError(f"{name}={value!r}: must {rule}")


@dataclasses.dataclass(frozen=True)
class Section:
    """The base of sections: fields are scalars, tuples of scalars, optional scalars, or sections.

    Lists are taken for tuples, integers for floats, mappings for sections.

    Raises:
      ValueError: if a value has another type or is out of range.
    """

    PREFIX: ClassVar[str] = ""  # of the names of its fields, such as `model.`

    def __post_init__(self):
        for field in dataclasses.fields(self):
            name, given = self.PREFIX + field.name, getattr(self, field.name)
            value = _convert(hints(type(self))[field.name], given, name)
            object.__setattr__(self, field.name, value)
            holds, text = field.metadata.get("rule", (None, ""))
            if holds and value is not None and not holds(value):
                fail(name, value, text)
        self.check()

    def check(self) -> None:
        """Raises ValueError if fields contradict each other."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """A section from a mapping; a field that is missing takes its default, an unknown one is a ValueError."""
        for name in values:
            if name not in hints(cls):
                full = f"{cls.PREFIX}{name}"
                raise ValueError(f"{full}: unknown field{nearest(full, cls.names())}")
        return cls(**values)

    @classmethod
    def names(cls) -> list[str]:
        """The dotted names of all fields, those of the sections inside too."""
        found = []
        for name, hint in hints(cls).items():
            found.append(cls.PREFIX + name)
            found += hint.names() if is_section(hint) else []
        return found

    def flatten(self) -> dict[str, Any]:
        """Every value by its dotted name."""
        found: dict[str, Any] = {}
        for name in hints(type(self)):
            value = getattr(self, name)
            found |= value.flatten() if isinstance(value, Section) else {self.PREFIX + name: value}
        return found

    def override(self, values: Mapping[str, Any]) -> Self:
        """A copy with other values, by their dotted names; raises ValueError as `read` does."""
        start = len(self.PREFIX)
        flat = {name[start:]: value for name, value in (self.flatten() | dict(values)).items()}
        return type(self).read(unflatten(flat))


def hints(cls: type) -> dict[str, Any]:
    """The types of a section's fields, by name and in their order."""
    return _hints(cls)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    found = typing.get_type_hints(cls)
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


def is_section(hint: Any) -> bool:
    """Whether a field's type is a section."""
    return isinstance(hint, type) and issubclass(hint, Section)


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name as nested dicts."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        functools.reduce(lambda inner, part: inner.setdefault(part, {}), path, nested)[last] = value
    return nested


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?` with the most similar of the known names, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _convert(hint: Any, value: Any, name: str) -> Any:
    if is_section(hint):
        if not isinstance(value, Mapping | hint):
            raise ValueError(f"{name}={value!r}: must be a section with the fields {', '.join(hints(hint))}")
        return value if isinstance(value, hint) else hint.read(value)
    if isinstance(hint, types.UnionType):
        first, *others = typing.get_args(hint)
        return value if isinstance(value, tuple(others)) else _convert(first, value, name)
    if typing.get_origin(hint) is not tuple:
        return _scalar(hint, value, f"{name}={value!r}")
    kinds = typing.get_args(hint)
    if not isinstance(value, tuple | list):
        fail(name, value, "be a tuple")
    if kinds[-1] is not Ellipsis and len(value) != len(kinds):
        fail(name, tuple(value), f"be {len(kinds)} numbers")
    return tuple(_scalar(kinds[0], each, f"{name}={tuple(value)}: element {i}") for i, each in enumerate(value))


def _scalar(kind: type, value: Any, said: str) -> Any:
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{said}: must be {WORDS[kind]}")
    if kind in (int, float) and not (abs(value) <= LARGEST):
        raise ValueError(f"{said[:80]}: must be finite and at most 2**53 in size")
    return float(value) if kind is float else value
