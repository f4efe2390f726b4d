"""Variants of the study: what each trains otherwise than the recipe, and in which ways it is sampled."""

from collections.abc import Mapping
from typing import Any, NamedTuple

MAIN = ("plain", "plain_same_time", "one_pass", "own_all", "written", "recipe_t_1000", "recipe")
HRNET = {"loss.diffusion": 0.0}
NO_MASKS = {"masks.keypoints": False, "masks.skeleton": False}
NO_SPATIAL, NO_CHANNEL = {"model.spatial_attention": False}, {"model.channel_attention": False}
WIDE = {"model.decoder_channels": 64}
REFINER = NO_MASKS | {"diffusion.own_share": 1.0}
PAPER_TIMES = {"diffusion.t_range": (1, 1000), "sampler.t_start": 1000}
PAPER = PAPER_TIMES | {"diffusion.own_share": 0.0, "model.channel_scale": "width"}
# One heatmap pixel of two crop pixels, at the cost of stride 4; a denoiser with little at full size.
SUB = {"stride": 2, "model.upsampling": "subpixel"}
LIGHT = NO_SPATIAL | NO_CHANNEL | {"model.decoder": "light"}
HALF = {"diffusion.every": 2}
# The denoiser alone, on an HRNet that stays as it is.
LATE = {"optim.backbone_rate": 0.0, "loss.coarse": 0.0}
DIRECT = ("direct", "unmirrored", "unflipped")
ALL = (*DIRECT, "ddim", "restarts")


class Variant(NamedTuple):
    """What is trained otherwise than the recipe, and how it is read."""

    title: str
    fields: Mapping[str, Any] = {}  # of the recipe, by their dotted names, with other values
    updates: tuple[str, ...] = DIRECT  # of `sampling.plan`, read beside the coarse branch
    most_steps: int | None = None  # the largest K that it is read with; None for any
    same_time: str | None = None  # a variant: trained for as many steps as fit in the time of that one's
    plain: str = "plain"  # the HRNet and the U-Net refiner that it is compared with
    refiner: str = "one_pass"
    after: str | None = None  # an HRNet, whose finished run of the same seed it starts from
    share: float = 1.0  # its training steps, of the study's


VARIANTS = {
    "plain": Variant("HRNet", HRNET, ("unflipped",), 0),
    "plain_same_time": Variant("HRNet, same training time", HRNET, ("unflipped",), 0, same_time="recipe"),
    "one_pass": Variant("U-Net refiner", REFINER, most_steps=1),
    "one_pass_wide": Variant("U-Net refiner, C = 64", REFINER | WIDE, most_steps=1),
    "own_all": Variant("recipe, on its own coarse heatmaps alone, no noise", {"diffusion.own_share": 1.0}),
    "written": Variant("as the paper writes", PAPER, ALL),
    "recipe": Variant("recipe", {}, ALL),
    "recipe_t_1000": Variant("recipe, t up to 1,000", PAPER_TIMES, ALL),
    "recipe_t_1000_narrow": Variant("recipe, t up to 1,000, C = 16", PAPER_TIMES | {"model.decoder_channels": 16}),
    "recipe_t_100": Variant("recipe, t up to 100", {"diffusion.t_range": (1, 100), "sampler.t_start": 100}, ALL),
    "recipe_no_own": Variant("recipe, noised true joints alone", {"diffusion.own_share": 0.0}),
    "recipe_wide": Variant("recipe, C = 64", WIDE),
    "recipe_no_masks": Variant("recipe, no masks", NO_MASKS),
    "recipe_keypoint_mask": Variant("recipe, keypoint mask alone", {"masks.skeleton": False}),
    "recipe_skeleton_mask": Variant("recipe, skeleton mask alone", {"masks.keypoints": False}),
    "recipe_wide_masks": Variant("recipe, masks twice as wide", {"masks.radius": 12.0, "masks.half_width": 6.0}),
    "recipe_soft_masks": Variant("recipe, soft masks", {"masks.softness": 1.0}),
    "recipe_no_attention": Variant("recipe, no SC-CA", NO_SPATIAL | NO_CHANNEL),
    "recipe_spatial_attention": Variant("recipe, A_s alone", NO_CHANNEL),
    "recipe_channel_attention": Variant("recipe, A_c alone", NO_SPATIAL),
    "recipe_channel_positions": Variant("recipe, A_c scaled by N^-1/2", {"model.channel_scale": "positions"}),
    **{f"recipe_zeta_{zeta}": Variant(f"recipe, ζ = {zeta}", {"diffusion.zeta": float(zeta)}) for zeta in (1, 5, 10)},
    "recipe_time_embedding": Variant("recipe, time embedding", {"model.time_embedding": True}),
    **{f"recipe_stride_{stride}": Variant(f"recipe, stride {stride}", {"stride": stride}) for stride in (8, 2)},
    "plain_sub": Variant("HRNet, sub-pixels", HRNET | SUB, ("unflipped",), 0),
    "light": Variant("light", LIGHT),
}
for _name, _title, _fields, _late in (
    ("", "", SUB, {}),
    ("_half", ", half of the batch", SUB | HALF, {}),
    ("_late", ", on a finished HRNet", SUB | LATE, {"after": "plain_sub", "share": 1 / 3}),
):
    _arm, _refiner, _plain = f"light_sub{_name}", f"one_pass_light_sub{_name}", f"plain_sub_time_of_light_sub{_name}"
    _text = f"light, sub-pixels{_title}"
    VARIANTS |= {
        _refiner: Variant(
            f"U-Net refiner, {_text}", REFINER | LIGHT | _fields, DIRECT, 1, None, "plain_sub", _refiner, **_late
        ),
        _arm: Variant(_text, LIGHT | _fields, plain="plain_sub", refiner=_refiner, **_late),
        _plain: Variant(f"HRNet, sub-pixels, time of {_text}", HRNET | SUB, ("unflipped",), 0, _arm, "plain_sub"),
    }


def controls(name: str) -> tuple[str, str, str | None]:
    """What a variant is compared with: an HRNet, a U-Net refiner, and an HRNet that trains for its time, if any."""
    variant = VARIANTS.get(name, Variant(name))
    same = (other for other, its in VARIANTS.items() if its.same_time == name)
    return variant.plain, variant.refiner, next(same, None)


def title(name: str) -> str:
    """The title of a variant; of one that is no longer here, its name."""
    return VARIANTS[name].title if name in VARIANTS else name
