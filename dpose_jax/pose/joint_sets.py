"""Joint sets: names, limbs, flip pairs and OKS sigmas of a data set's joints. All indices start at 0."""

import dataclasses
import functools
import json
import os
import reprlib
import sys
import typing
from collections.abc import Mapping
from typing import Any

from dpose_jax.typed_fields import WORDS, fail

_MOST_BYTES = 1 << 24  # of a file

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class JointSet:
    """One set of J joints; ValueError if the lengths do not agree or an index is out of range."""

    name: str  # as configs give it
    joints: tuple[str, ...]  # in annotation order
    limbs: tuple[Pair, ...]  # for the skeleton mask and for drawing
    flip_pairs: tuple[Pair, ...]  # joints that swap in a mirrored image
    sigmas: tuple[float, ...]  # of OKS, in square roots of the area: half of COCO's k, as the variance is (2 sigma)^2
    upper_body: tuple[int, ...]  # joints above the waist, for half-body augmentation

    def __post_init__(self):
        count = len(self.joints)

        def require(holds: bool, rule: str, value: Any) -> None:
            if not holds:
                raise ValueError(f"joint set {self.name!r}: {rule}, got {reprlib.repr(value)}")

        require(0 < count == len(set(self.joints)), "joints must be non-empty and distinct", self.joints)
        usable = len(self.sigmas) == count and all(0 < sigma <= sys.float_info.max for sigma in self.sigmas)
        require(usable, f"sigmas must be {count} positive numbers, one a joint", self.sigmas)
        for field in ("limbs", "flip_pairs"):
            for pair in getattr(self, field):
                distinct = len(pair) == len(set(pair)) == 2 and all(0 <= i < count for i in pair)
                require(distinct, f"{field} must be pairs of distinct indices in 0..{count - 1}", pair)
        flipped = [i for pair in self.flip_pairs for i in pair]
        require(len(set(flipped)) == len(flipped), "flip_pairs must name a joint at most once", self.flip_pairs)
        inside = all(0 <= i < count for i in self.upper_body)
        require(inside, f"upper_body must be indices in 0..{count - 1}", self.upper_body)

    @property
    def num_joints(self) -> int:
        """J."""
        return len(self.joints)

    @functools.cached_property
    def flip_order(self) -> tuple[int, ...]:
        """J indices: joint j of a mirrored person is joint `flip_order[j]` of the person."""
        order = list(range(self.num_joints))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return tuple(order)


# From COCO's `person_keypoints` annotations, CrowdPose's API and AI Challenger's evaluation script.
# fmt: off
COCO = JointSet(
    name="coco",
    joints=("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
            "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee",
            "left_ankle", "right_ankle"),
    limbs=((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
           (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    sigmas=(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087,
            0.089, 0.089),
    upper_body=tuple(range(11)),
)
CROWDPOSE = JointSet(
    name="crowdpose",
    joints=(*COCO.joints[5:], "top_head", "neck"),
    limbs=((10, 8), (8, 6), (11, 9), (9, 7), (6, 7), (0, 6), (1, 7), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (12, 13),
           (1, 13), (0, 13)),
    flip_pairs=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)),
    sigmas=(*COCO.sigmas[5:], 0.079, 0.079),
    upper_body=(0, 1, 2, 3, 4, 5, 12, 13),
)
AIC = JointSet(
    name="aic",
    joints=("right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist", "right_hip",
            "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "head_top", "neck"),
    limbs=((2, 1), (1, 0), (0, 13), (13, 3), (3, 4), (4, 5), (8, 7), (7, 6), (6, 9), (9, 10), (10, 11), (12, 13),
           (0, 6), (3, 9)),
    flip_pairs=((0, 3), (1, 4), (2, 5), (6, 9), (7, 10), (8, 11)),
    sigmas=(0.01388152, 0.01515228, 0.01057665, 0.01417709, 0.01497891, 0.01402144, 0.03909642, 0.03686941, 0.01981803,
            0.03843971, 0.03412318, 0.02415081, 0.01291456, 0.01236173),
    upper_body=(0, 1, 2, 3, 4, 5, 12, 13),
)
# fmt: on
_BUILT_IN = {joint_set.name: joint_set for joint_set in (COCO, CROWDPOSE, AIC)}


def get_joint_set(name: str | JointSet) -> JointSet:
    """Returns the joint set "coco", "crowdpose" or "aic", or that of a UTF-8 JSON file; a JointSet as it is.

    The file's keys are JointSet's fields; it may leave out `name` and `upper_body`. Raises ValueError with the file and
    the field if the name is unknown or the file does not hold a joint set.
    """
    if isinstance(name, JointSet):
        return name
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if not name.endswith(".json") or not os.path.isfile(name):
        fail("joint_set", name, f"be one of {sorted(_BUILT_IN)} or the path of an existing .json file")
    if (size := os.path.getsize(name)) > _MOST_BYTES:
        raise ValueError(f"joint_set={name!r}: has {size} bytes, more than {_MOST_BYTES}")
    with open(name, encoding="utf-8-sig") as file:
        try:
            metadata = json.load(file)
        except (ValueError, RecursionError) as error:  # the latter of brackets nested by the thousand
            raise ValueError(f"joint_set={name!r}: not JSON in UTF-8: {error}") from error
    if not isinstance(metadata, dict):
        fail("joint_set", name, f"hold an object, got {type(metadata).__name__}")
    try:
        return from_facts({"name": os.path.splitext(os.path.basename(name))[0], "upper_body": (), **metadata})
    except ValueError as error:
        raise ValueError(f"joint_set={name!r}: {error}") from error


def from_facts(facts: Mapping[str, Any]) -> JointSet:
    """The joint set of fields as JSON values, where tuples may be lists; ValueError, which names a wrong field."""
    hints = typing.get_type_hints(JointSet)
    if set(facts) != set(hints):
        missing, unknown = sorted(set(hints) - set(facts)), sorted(set(facts) - set(hints))
        raise ValueError(f"missing keys {missing}, unknown keys {unknown}")
    return JointSet(**{field: _read(hints[field], value, field) for field, value in facts.items()})


def _read(hint: Any, value: Any, field: str) -> Any:
    """A field's JSON value, or a part of it, as a scalar or tuple of type `hint`, or a ValueError."""
    kinds = typing.get_args(hint)
    if kinds:
        what = "a list" if kinds[-1] is Ellipsis else f"a list of {len(kinds)} integers"
        fits = isinstance(value, list | tuple) and (kinds[-1] is Ellipsis or len(value) == len(kinds))
    elif hint is float:
        fits, what = isinstance(value, int | float) and abs(value) <= sys.float_info.max, "a finite number"
    else:
        fits, what = isinstance(value, hint), WORDS[hint]
    if not fits or isinstance(value, bool):
        raise ValueError(f"{field}: {reprlib.repr(value)} must be {what}")
    return tuple(_read(kinds[0], each, field) for each in value) if kinds else hint(value)
