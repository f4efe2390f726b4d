"""Variants of the study: what each trains otherwise than the recipe, and in which ways it is sampled."""

from collections.abc import Mapping
from typing import Any, NamedTuple

MAIN = "plain_sub", "plain_sub_time_of_light_sub", "one_pass_light_sub", "light_sub", "written"
DRAWN = *MAIN, "unet", "one_pass", "plain", "own_all", "unet_t_1000", "plain_same_time"  # in plots, if any is there
HRNET = {"loss.diffusion": 0.0}
NO_MASKS = {"masks.keypoints": False, "masks.skeleton": False}
NO_SPATIAL, NO_CHANNEL = {"model.spatial_attention": False}, {"model.channel_attention": False}
WIDE = {"model.decoder_channels": 64}
REFINER = NO_MASKS | {"diffusion.own_share": 1.0}
PAPER_TIMES = {"diffusion.t_range": (1, 1000), "sampler.t_start": 1000}
PAPER = PAPER_TIMES | {"diffusion.own_share": 0.0, "model.channel_scale": "width"}
# The paper's form, at stride 4, whatever the recipe has.
STRIDE_4, STRIDE_2 = ({"stride": s, "model.upsampling": "bilinear"} for s in (4, 2))
ATTENTION = {"model.spatial_attention": True, "model.channel_attention": True}
UNET = STRIDE_4 | ATTENTION | {"model.decoder": "unet"}
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


AT_2 = {"plain": "plain_stride_2", "refiner": "one_pass_stride_2"}
VARIANTS = {
    "plain": Variant("HRNet", STRIDE_4 | HRNET, ("unflipped",), 0),
    "plain_same_time": Variant("HRNet, same training time", STRIDE_4 | HRNET, ("unflipped",), 0, same_time="unet"),
    "one_pass": Variant("U-Net refiner", UNET | REFINER, most_steps=1),
    "one_pass_wide": Variant("U-Net refiner, C = 64", UNET | REFINER | WIDE, most_steps=1),
    "own_all": Variant("U-Net, on its own coarse heatmaps alone, no noise", UNET | {"diffusion.own_share": 1.0}),
    "written": Variant("as the paper writes", UNET | PAPER, ALL),
    "unet": Variant("U-Net", UNET, ALL),
    "unet_t_1000": Variant("U-Net, t up to 1,000", UNET | PAPER_TIMES, ALL),
    "unet_t_1000_narrow": Variant("U-Net, t up to 1,000, C = 16", UNET | PAPER_TIMES | {"model.decoder_channels": 16}),
    "unet_t_100": Variant("U-Net, t up to 100", UNET | {"diffusion.t_range": (1, 100), "sampler.t_start": 100}, ALL),
    "unet_no_own": Variant("U-Net, noised true joints alone", UNET | {"diffusion.own_share": 0.0}),
    "unet_wide": Variant("U-Net, C = 64", UNET | WIDE),
    "unet_no_masks": Variant("U-Net, no masks", UNET | NO_MASKS),
    "unet_keypoint_mask": Variant("U-Net, keypoint mask alone", UNET | {"masks.skeleton": False}),
    "unet_skeleton_mask": Variant("U-Net, skeleton mask alone", UNET | {"masks.keypoints": False}),
    "unet_wide_masks": Variant("U-Net, masks twice as wide", UNET | {"masks.radius": 12.0, "masks.half_width": 6.0}),
    "unet_soft_masks": Variant("U-Net, soft masks", UNET | {"masks.softness": 1.0}),
    "unet_no_attention": Variant("U-Net, no SC-CA", UNET | NO_SPATIAL | NO_CHANNEL),
    "unet_spatial_attention": Variant("U-Net, A_s alone", UNET | NO_CHANNEL),
    "unet_channel_attention": Variant("U-Net, A_c alone", UNET | NO_SPATIAL),
    "unet_channel_positions": Variant("U-Net, A_c scaled by N^-1/2", UNET | {"model.channel_scale": "positions"}),
    **{f"unet_zeta_{z}": Variant(f"U-Net, ζ = {z}", UNET | {"diffusion.zeta": float(z)}) for z in (1, 5, 10)},
    "unet_time_embedding": Variant("U-Net, time embedding", UNET | {"model.time_embedding": True}),
    "unet_stride_8": Variant("U-Net, stride 8", UNET | {"stride": 8}),
    "plain_stride_2": Variant("HRNet, stride 2", STRIDE_2 | HRNET, ("unflipped",), 0, **AT_2),
    "one_pass_stride_2": Variant("U-Net refiner, stride 2", UNET | STRIDE_2 | REFINER, most_steps=1, **AT_2),
    "unet_stride_2": Variant("U-Net, stride 2", UNET | STRIDE_2, **AT_2),
    "plain_sub": Variant("HRNet, sub-pixels", HRNET | SUB, ("unflipped",), 0),
    "light": Variant("light", STRIDE_4 | LIGHT),
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
        _arm: Variant(_text, LIGHT | _fields, ALL, plain="plain_sub", refiner=_refiner, **_late),
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
