"""Arms of the study: what each trains otherwise than the recipe, and in which ways it is sampled."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from benchmarks.sampling import Run, plan
from dpose_jax.diffusion.sampler import UPDATE_RULES, SamplerSettings

MAIN = ("plain", "plain_same_time", "one_pass", "own_all", "written", "recipe_t_1000", "recipe")
NO_MASKS = {"masks.keypoints": False, "masks.skeleton": False}
ONE_PASS = NO_MASKS | {"diffusion.own_share": 1.0}
PAPER_TIMES = {"diffusion.t_range": (1, 1000), "sampler.t_start": 1000}
DIRECT = ("direct", "unmirrored", "unflipped")
MANY = (*DIRECT, "ddim", "restarts")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
      what: in words.
      fields: of the recipe, by their dotted names, with other values.
      samplings: which lines are read beside `coarse`: of `sampling.plan`, by their update; `unmirrored`, which is
        `direct` without denoising the mirrored crop; `unflipped`, `direct` and coarse branch without the flip test.
      most_steps: of the sampling steps K, if it takes no more.
      same_time: train for the steps that fit in the time of the recipe's.
    """

    what: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    samplings: tuple[str, ...] = MANY
    most_steps: int | None = None
    same_time: bool = False


def _changed(what: str, fields: Mapping[str, Any]) -> Arm:
    """The recipe but for `fields`."""
    return Arm(f"the recipe, {what}", fields, DIRECT)


ARMS = {
    "plain": Arm("plain HRNet, the coarse branch trained alone", {"loss.diffusion": 0.0}, ("unflipped",), 0),
    "plain_same_time": Arm(
        "the same for as long as the recipe takes", {"loss.diffusion": 0.0}, ("unflipped",), 0, same_time=True
    ),
    "late_same_time": Arm(
        "the recipe, HRNet alone in the first half of its steps, for as long as the recipe takes",
        {"optim.denoiser_from": 0.5},
        DIRECT,
        same_time=True,
    ),
    "one_pass": Arm("the U-Net on coarse heatmaps, no noise, no masks", ONE_PASS, DIRECT, most_steps=1),
    "one_pass_wide": Arm("one_pass, C = 64", ONE_PASS | {"model.decoder_channels": 64}, DIRECT, most_steps=1),
    "passes": Arm("one_pass, half of it unrolled by one step", ONE_PASS | {"diffusion.unroll_share": 0.5}, DIRECT),
    "own_all": Arm("the recipe on its own coarse heatmaps always, no noise", {"diffusion.own_share": 1.0}, DIRECT),
    "written": Arm(
        "DiffusionPose as written", PAPER_TIMES | {"diffusion.own_share": 0.0, "model.channel_scale": "width"}
    ),
    "recipe": Arm("the recipe as it stands"),
    "recipe_t_1000": Arm("the recipe, t up to 1,000", PAPER_TIMES),
    "recipe_t_1000_unrolled": _changed("t up to 1,000, half unrolled", PAPER_TIMES | {"diffusion.unroll_share": 0.5}),
    "recipe_t_1000_narrow": _changed("t up to 1,000, C = 16", PAPER_TIMES | {"model.decoder_channels": 16}),
    "recipe_t_100": Arm("the recipe, t up to 100", {"diffusion.t_range": (1, 100), "sampler.t_start": 100}),
    "recipe_no_own": _changed("on noised true joints alone", {"diffusion.own_share": 0.0}),
    "recipe_unrolled": _changed("half of it unrolled by one step", {"diffusion.unroll_share": 0.5}),
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
    "recipe_zeta_1": _changed("zeta 1", {"diffusion.zeta": 1.0}),
    "recipe_zeta_5": _changed("zeta 5", {"diffusion.zeta": 5.0}),
    "recipe_zeta_10": _changed("zeta 10", {"diffusion.zeta": 10.0}),
    "recipe_time_embedding": _changed("with time embedding", {"model.time_embedding": True}),
    "recipe_residual": _changed("D predicts the change", {"model.residual": True}),
    "recipe_coarse_3": _changed("the coarse loss three times as heavy", {"loss.coarse": 3.0}),
    "recipe_stride_8": _changed("heatmaps at stride 8", {"stride": 8}),
    "recipe_stride_2": _changed("heatmaps at stride 2", {"stride": 2}),
    "recipe_stride_1": _changed("heatmaps at stride 1", {"stride": 1}),
}


def arm_config(recipe: ConfigDict, arm: Arm, seed: int, steps: int) -> ConfigDict:
    """The recipe with an arm's fields, a seed (of weights, order and noise) and a number of training steps."""
    config = recipe.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(dict(arm.fields) | {"seed": seed, "train.steps": steps})
    return config.lock()


def lines_of(config: ConfigDict, arm: Arm, steps: Sequence[int], noise_time: int) -> dict[str, list[Run]]:
    """The runs that an arm is read by, by their update."""
    taken = [k for k in steps if arm.most_steps is None or k <= arm.most_steps]
    updates = [name for name in arm.samplings if name in UPDATE_RULES]
    noised = noise_time if "restarts" in arm.samplings else None
    runs = plan(config, taken, updates, noised, 0) if taken else []
    once = [run for run in runs if run.update == "direct"]
    runs += [dataclasses.replace(run, update="unmirrored", settings=_unmirrored(run.settings)) for run in once]
    runs += [dataclasses.replace(run, update="unflipped", flip=False) for run in [Run("coarse", 0, None), *once]]
    return {name: [run for run in runs if run.update == name] for name in arm.samplings}


def _unmirrored(settings: SamplerSettings | None) -> SamplerSettings:
    assert settings is not None
    return dataclasses.replace(settings, mirrored=False)
