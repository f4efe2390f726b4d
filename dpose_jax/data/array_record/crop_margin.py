"""How much of an image around a person the augmentation of a recipe can reach: what `crops` records store (ours)."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from dpose_jax.data.crop import BORDER, half_body_view, widened_view
from dpose_jax.data.sample import Person
from dpose_jax.recipe import Recipe


def _bound(field: str, covers: Callable[[Any, Any], bool], **default) -> Any:
    """A bound by a field of the recipe; `covers` compares the built value to a wanted one."""
    return dataclasses.field(metadata={"field": field, "covers": covers}, **default)


@dataclasses.dataclass(frozen=True)
class Margin:
    """The bounds of a recipe's augmentation."""

    aspect: float = _bound("input_size (its aspect)", operator.eq)  # width / height
    padding: float = _bound("crop.padding", operator.ge)
    scale: float = _bound("augment.scale", operator.ge, default=0.0)  # the crop is at most 1 + scale times as large
    angle: float = _bound("augment.rotation (twice it, in degrees)", operator.ge, default=0.0)  # either way
    shift: float = _bound("augment.shift", operator.ge, default=0.0)  # of the centre, in shares of the box's sides
    half_body: bool = _bound("augment.half_body", operator.ge, default=False)  # whether half bodies are drawn
    half_body_min_joints: int = _bound("augment.half_body_min_joints", operator.le, default=0)
    upper_body: tuple[int, ...] = _bound("joint_set (its upper_body)", operator.eq, default=())  # () without halves

    @classmethod
    def of(cls, recipe: Recipe, *, training: bool) -> "Margin":
        """The margin of a recipe; without training that of the plain crop."""
        (height, width), padding, augment = recipe.input_size, recipe.crop.padding, recipe.augment
        if not training:
            return cls(width / height, padding)
        angle = min(2 * augment.rotation, 180.0) if augment.rotation_prob > 0 else 0.0
        upper_body = tuple(recipe.joints.upper_body) if augment.half_body > 0 else ()
        least = augment.half_body_min_joints if upper_body else 0
        return cls(width / height, padding, augment.scale, angle, augment.shift, bool(upper_body), least, upper_body)

    def check_covers(self, recipe: "Margin", where: str) -> None:
        """Raises ValueError if a recipe reaches further than crops of this margin; names `where` and the field."""
        for bound in dataclasses.fields(self):
            built, wanted = getattr(self, bound.name), getattr(recipe, bound.name)
            matters = recipe.half_body or bound.name not in ("half_body_min_joints", "upper_body")
            if matters and not bound.metadata["covers"](built, wanted):
                raise ValueError(
                    f"{where}: the stored crops do not reach as far as this recipe: {bound.metadata['field']} is "
                    f"{wanted}, they were built for {built}; build them with this recipe, or use data.source='full'"
                )

    def window(self, person: Person, size: tuple[int, int], border: int = BORDER) -> tuple[int, int, int, int]:
        """The part of an image of `size` (height, width) that any view of the person can sample, and a border.

        Returns left, top, right, bottom in whole pixels, right and bottom exclusive, inside the image; at least 1 x 1.
        """
        views = [widened_view(person.bbox, self.aspect, self.padding)]
        if self.half_body and (person.keypoints[:, 2] > 0).sum() > self.half_body_min_joints:
            halves = [half_body_view(person.keypoints, self.upper_body, upper, self.aspect) for upper in (True, False)]
            views += [half for half in halves if half is not None]
        shift = self.shift * person.bbox[2:].astype(np.float64)
        low = np.min([view.center - self._reach(view.size) for view in views], axis=0) - shift
        high = np.max([view.center + self._reach(view.size) for view in views], axis=0) + shift
        bounds = np.array([size[1], size[0]])
        low = np.clip(np.floor(low) - border, 0, bounds - 1).astype(int)
        high = np.clip(np.ceil(high) + border + 1, low + 1, bounds).astype(int)
        (left, top), (right, bottom) = low.tolist(), high.tolist()
        return left, top, right, bottom

    def _reach(self, size: np.ndarray) -> np.ndarray:
        """(2,) furthest x and y from the centre that a crop of that size has at any scale and angle."""
        along = size / 2 * (1 + self.scale)
        across = along[::-1]
        at = np.minimum(np.deg2rad(self.angle), np.arctan2(across, along))  # here along cos + across sin is largest
        return along * np.cos(at) + across * np.sin(at)
