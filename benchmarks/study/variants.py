"""Variants of the study: what each trains otherwise than the recipe, and in which ways it is sampled."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.sampling import Sampling, plan
from dpose_jax.diffusion.sampler import UPDATE_RULES
from dpose_jax.recipe import Recipe

MAIN = ("plain", "plain_same_time", "one_pass", "own_all", "written", "recipe_t_1000", "recipe")
HRNET = {"loss.diffusion": 0.0}
NO_MASKS = {"masks.keypoints": False, "masks.skeleton": False}
REFINER = NO_MASKS | {"diffusion.own_share": 1.0}
PAPER_TIMES = {"diffusion.t_range": (1, 1000), "sampler.t_start": 1000}
PAPER = PAPER_TIMES | {"diffusion.own_share": 0.0, "model.channel_scale": "width"}
DIRECT = ("direct", "unmirrored", "unflipped")
ALL = (*DIRECT, "ddim", "restarts")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
      title: what it is, for tables and plots.
      fields: of the recipe, by their dotted names, with other values.
      updates: read beside the coarse branch, each with every K. `unmirrored` is `direct` without denoising the mirrored
        crop, `unflipped` is `direct` and the coarse branch without the flip test, the others are those of `plan`.
      most_steps: the largest K that it is read with; None for any.
      same_time: train for as many steps as fit in the time of the recipe's.
    """

    title: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    updates: tuple[str, ...] = ALL
    most_steps: int | None = None
    same_time: bool = False


def _changed(title: str, fields: Mapping[str, Any]) -> Variant:
    return Variant(f"recipe, {title}", fields, DIRECT)


VARIANTS = {
    "plain": Variant("HRNet", HRNET, ("unflipped",), 0),
    "plain_same_time": Variant("HRNet, same training time", HRNET, ("unflipped",), 0, same_time=True),
    "one_pass": Variant("U-Net refiner", REFINER, DIRECT, 1),
    "one_pass_wide": Variant("U-Net refiner, C = 64", REFINER | {"model.decoder_channels": 64}, DIRECT, 1),
    "own_all": _changed("on its own coarse heatmaps alone, no noise", {"diffusion.own_share": 1.0}),
    "written": Variant("as the paper writes", PAPER),
    "recipe": Variant("recipe"),
    "recipe_t_1000": Variant("recipe, t up to 1,000", PAPER_TIMES),
    "recipe_t_1000_narrow": _changed("t up to 1,000, C = 16", PAPER_TIMES | {"model.decoder_channels": 16}),
    "recipe_t_100": Variant("recipe, t up to 100", {"diffusion.t_range": (1, 100), "sampler.t_start": 100}),
    "recipe_no_own": _changed("noised true joints alone", {"diffusion.own_share": 0.0}),
    "recipe_narrow": _changed("C = 16", {"model.decoder_channels": 16}),
    "recipe_wide": _changed("C = 64", {"model.decoder_channels": 64}),
    "recipe_no_masks": _changed("no masks", NO_MASKS),
    "recipe_keypoint_mask": _changed("keypoint mask alone", {"masks.skeleton": False}),
    "recipe_skeleton_mask": _changed("skeleton mask alone", {"masks.keypoints": False}),
    "recipe_wide_masks": _changed("masks twice as wide", {"masks.radius": 12.0, "masks.half_width": 6.0}),
    "recipe_soft_masks": _changed("soft masks", {"masks.softness": 1.0}),
    "recipe_no_attention": _changed("no SC-CA", {"model.spatial_attention": False, "model.channel_attention": False}),
    "recipe_spatial_attention": _changed("A_s alone", {"model.channel_attention": False}),
    "recipe_channel_attention": _changed("A_c alone", {"model.spatial_attention": False}),
    "recipe_channel_positions": _changed("A_c scaled by N^-1/2", {"model.channel_scale": "positions"}),
    "recipe_zeta_1": _changed("ζ = 1", {"diffusion.zeta": 1.0}),
    "recipe_zeta_5": _changed("ζ = 5", {"diffusion.zeta": 5.0}),
    "recipe_zeta_10": _changed("ζ = 10", {"diffusion.zeta": 10.0}),
    "recipe_time_embedding": _changed("time embedding", {"model.time_embedding": True}),
    "recipe_coarse_3": _changed("weight 3 of the coarse loss", {"loss.coarse": 3.0}),
    "recipe_stride_8": _changed("stride 8", {"stride": 8}),
    "recipe_stride_2": _changed("stride 2", {"stride": 2}),
    "recipe_stride_1": _changed("stride 1", {"stride": 1}),
}


def title(name: str) -> str:
    """The title of a variant; of one that is no longer here, its name."""
    return VARIANTS[name].title if name in VARIANTS else name


def recipe_of(recipe: Recipe, variant: Variant, seed: int, train_steps: int) -> Recipe:
    """The recipe with a variant's fields, a seed (of weights, order and noise) and a number of training steps."""
    return recipe.override(dict(variant.fields) | {"seed": seed, "train.steps": train_steps})


def samplings_of(recipe: Recipe, variant: Variant, steps: Sequence[int], noise_time: int) -> dict[str, list[Sampling]]:
    """The ways in which a variant is sampled, by update, the coarse branch first.

    Args:
      recipe: of the variant; steps: K of each; noise_time: t_start of the restarts.
    """
    some = [k for k in steps if variant.most_steps is None or k <= variant.most_steps]
    updates = [name for name in variant.updates if name in UPDATE_RULES]
    found = plan(recipe, some, updates, noise_time if "restarts" in variant.updates else None) if some else []
    coarse, direct = Sampling("coarse", 0, None), [one for one in found if one.update == "direct"]
    for one in direct:
        assert one.settings is not None
        settings = dataclasses.replace(one.settings, mirrored=False)
        found.append(dataclasses.replace(one, update="unmirrored", settings=settings))
    found += [dataclasses.replace(one, update="unflipped", flip=False) for one in (coarse, *direct)]
    by_update = {name: [one for one in found if one.update == name] for name in variant.updates}
    return {"coarse": [coarse]} | {name: its for name, its in by_update.items() if its}
