"""Rows of the table of speeds for single pieces of work: heatmaps, decoding, a sampling step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peers, report
from dpose_jax.diffusion.process import Schedule
from dpose_jax.diffusion.sampler import SamplerSettings, sample
from dpose_jax.pose import masks
from dpose_jax.pose.codec import Codec
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.recipe import Recipe

BATCH, SIZE = 64, (256, 192)
STEPS = 9  # of the sampler: a step is an eighth of what nine take beyond one
Contenders = dict[str, Callable[[], object]]


def entries(work: str, unit: str, contenders: Contenders, amount: float, compile_seconds: float | None = None) -> list:
    """A row for each contender, timed in turn: the median as `value`, the quartiles as `low` and `high`."""
    rows = []
    for who, t in report.measure(contenders).items():
        seconds = np.array(t[:3])  # of a call, with `amount` persons, images or steps
        value, *ends = (amount / seconds if unit.endswith("/s") else 1e3 * seconds / amount).tolist()
        rows.append({"work": work, "unit": unit, "who": who, "value": value, "low": min(ends), "high": max(ends)})
    if compile_seconds is not None:
        rows[0]["compile_seconds"] = compile_seconds
    return rows


def compare(work: str, unit: str, function: Callable, inputs: tuple, theirs: Contenders, amount: float) -> list:
    """Rows of `entries`: our function, compiled for its inputs, beside the peers' calls."""
    program, seconds = report.compiled(function, *inputs)
    return entries(work, unit, {"ours": functools.partial(program, *inputs)} | theirs, amount, seconds)


def draw_people(codec: Codec, batch: int = BATCH):
    """(B, 17, 2) float32 joints anywhere in the crop, in crop pixels, and their (B, 17) visibilities, all 1."""
    keypoints = np.random.default_rng(0).random((batch, COCO.num_joints, 2)) * (np.array(codec.input_size[::-1]) - 1)
    return keypoints.astype(np.float32), np.ones((batch, COCO.num_joints), np.float32)


def draw_heatmaps(codec: Codec, batch: int = BATCH) -> jax.Array:
    """(B, H, W, 17) float32 heatmaps of random people, with a little noise like a network's."""
    clean = np.asarray(codec.encode(*draw_people(codec, batch)))
    return jnp.asarray(clean + np.random.default_rng(1).normal(0, 0.01, clean.shape).astype(np.float32))


def masks_of(keypoints: jax.Array, visible: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """M^kps and M^ske of COCO's joints in heatmap pixels, with the recipes' widths."""
    joints = masks.joint_mask(keypoints, visible, size=size, radius=6.0)
    return joints, masks.limb_mask(keypoints, visible, limbs=COCO.limbs, size=size, half_width=3.0)


def heatmaps(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """Target heatmaps of a batch of persons, without and with both masks."""
    codec, people = Codec(SIZE), draw_people(Codec(SIZE))

    def with_masks(keypoints, visible):
        return codec.encode(keypoints, visible), masks_of(codec.to_heatmap(keypoints), visible, codec.size)

    theirs = {"hrnet, 1 core": peers.hrnet_targets(wanted["hrnet"], *people)} if "hrnet" in wanted else {}
    rows = compare("heatmaps", "sets/s", codec.encode, people, theirs, BATCH)
    return rows + compare("heatmaps and both masks", "sets/s", with_masks, people, {}, BATCH)


def decode(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """Heatmaps to joints."""
    maps = draw_heatmaps(Codec(SIZE))
    theirs = {"hrnet, 1 core": peers.hrnet_decode(wanted["hrnet"], np.asarray(maps))} if "hrnet" in wanted else {}
    rows = compare("decode, quarter", "sets/s", Codec(SIZE, refine="quarter").decode, (maps,), theirs, BATCH)
    return rows + compare("decode, dark", "sets/s", Codec(SIZE, refine="dark").decode, (maps,), {}, BATCH)


def sampling(settings: SamplerSettings, codec: Codec) -> Callable[[jax.Array], jax.Array]:
    """The sampler, heatmaps -> heatmaps, around a network that costs nothing. Masks are drawn as for a real one."""

    def denoise(heatmaps, context, t):
        # The barrier stands for a network, which XLA would not fuse with the sampler either. Adding 0 times the masks
        # keeps XLA from leaving them out: it cannot know that they are finite.
        heatmaps, (kps, ske) = jax.lax.optimization_barrier((heatmaps, context))
        return heatmaps.at[0, 0, 0, 0].add(0 * (jnp.sum(kps) + jnp.sum(ske)))

    def run(heatmaps):
        work = {"denoise": denoise, "keys": jax.random.split(jax.random.key(0), len(heatmaps))}
        work["condition"] = lambda y: masks_of(codec.denormalise(y), jnp.ones(y.shape[:2]), codec.size)
        return sample(heatmaps, settings=settings, schedule=Schedule(), codec=codec, **work)[0]

    return run


def sampler(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """What a DDIM step costs beside its network: decoding, the update, noise; with `refresh` the masks too."""
    codec, rows = Codec(SIZE), []
    maps = draw_heatmaps(codec)
    for name, eta, refresh in (("eta 0", 0.0, False), ("eta 1", 1.0, False), ("masks too", 0.0, True)):
        runs, total, work = {}, 0.0, f"sampler, ddim, {name}"
        for steps in (1, STEPS):
            settings = SamplerSettings(steps=steps, update_rule="ddim", eta=eta, refresh=refresh)
            program, seconds = report.compiled(sampling(settings, codec), maps)
            runs[steps] = functools.partial(program, maps)
            total += seconds
        one, many = (timing.median for timing in report.measure(runs).values())
        each = 1e3 * (many - one) / (STEPS - 1)
        rows.append({"work": work, "unit": "ms a step", "who": "ours", "value": each, "compile_seconds": total})
        if "diffusers" in wanted and not refresh:
            theirs = {"diffusers, on heatmaps": peers.diffusers_step(np.asarray(maps), eta)}
            rows += entries(work, "ms a step", theirs, 1)
    return rows
