"""Variants of the study: what each trains otherwise than the recipe, and in which ways it is sampled."""

from collections.abc import Mapping
from typing import Any, NamedTuple

MAIN = ("plain", "plain_same_time", "one_pass", "own_all", "written", "recipe_t_1000", "recipe")
HRNET = {"loss.diffusion": 0.0}
NO_MASKS = {"masks.keypoints": False, "masks.skeleton": False}
REFINER = NO_MASKS | {"diffusion.own_share": 1.0}
PAPER_TIMES = {"diffusion.t_range": (1, 1000), "sampler.t_start": 1000}
PAPER = PAPER_TIMES | {"diffusion.own_share": 0.0, "model.channel_scale": "width"}
DIRECT = ("direct", "unmirrored", "unflipped")
ALL = (*DIRECT, "ddim", "restarts")


class Variant(NamedTuple):
    """What is trained otherwise than the recipe, and how it is read."""

    title: str
    fields: Mapping[str, Any] = {}  # of the recipe, by their dotted names, with other values
    updates: tuple[str, ...] = ALL  # of `sampling.plan`, read beside the coarse branch
    most_steps: int | None = None  # the largest K that it is read with; None for any
    same_time: bool = False  # trained for as many steps as fit in the time of the recipe's


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
    **{f"recipe_zeta_{zeta}": _changed(f"ζ = {zeta}", {"diffusion.zeta": float(zeta)}) for zeta in (1, 5, 10)},
    "recipe_time_embedding": _changed("time embedding", {"model.time_embedding": True}),
    **{f"recipe_stride_{stride}": _changed(f"stride {stride}", {"stride": stride}) for stride in (8, 2)},
}


def title(name: str) -> str:
    """The title of a variant; of one that is no longer here, its name."""
    return VARIANTS[name].title if name in VARIANTS else name
