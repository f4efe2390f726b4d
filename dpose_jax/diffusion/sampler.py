"""RDP: from the coarse heatmaps to the joints, as one `lax.scan`; knows no network, only functions."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dpose_jax.diffusion.process import Schedule, ddim_step, q_sample, to_normalised
from dpose_jax.pose.codec import Codec
from dpose_jax.recipe import Sampler


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """One sampling run; the fields are those of the recipe's `sampler`.

    The start is `coarse` (the paper), conv(x^fea) itself; `coarse_noised` (ours), its joints sent forward to t_start
    and drawn; or `random` (ours), joints from N(0, 1), as y is at T. `direct` without `model.time_embedding` never
    reads t. With `mirrored` the flip test averages the results of both crops; else their coarse heatmaps, into the
    start, so that the denoiser sees half as many crops (ours).
    """

    steps: int = 4  # K in 1..t_start, decoder passes; skipping times is the paper's, after DDIM
    update_rule: str = "direct"  # a name of UPDATES
    start: str = "coarse"
    t_start: int = 1000  # in 1..T, the time of the start; the paper recipe starts at T
    eta: float = 0.0  # of DDIM, in [0, 1]
    refresh: bool = False  # draw the masks anew at every step, else once from the start (the paper)
    mirrored: bool = True

    @property
    def times(self) -> np.ndarray:
        """(K + 1,) int32, round(linspace(t_start, 0, K + 1)): the times that are not skipped."""
        return np.round(np.linspace(self.t_start, 0, self.steps + 1)).astype(np.int32)


class Step(NamedTuple):
    """A step from t to t_next, scalars, with DDIM's eta and noise (B, J, 2)."""

    t: Array
    t_next: Array
    eta: float
    noise: Array


class Space(NamedTuple):
    """Joints y, in units of zeta, and their heatmaps."""

    schedule: Schedule
    codec: Codec

    def decode(self, heatmaps: Array) -> Array:
        """(B, H, W, J) -> (B, J, 2), normalised to [-1, 1] and not scaled by zeta."""
        return self.codec.normalise(self.codec.peaks(heatmaps, "dark")[0])

    def draw(self, y: Array) -> Array:
        """(B, J, 2) in units of zeta, clamped -> (B, H, W, J)."""
        joints = self.codec.denormalise(to_normalised(self.schedule, y))
        return self.codec.render(joints, jnp.ones(y.shape[:-1], jnp.float32))


class Rule(NamedTuple):
    """An update rule."""

    # (space, y, estimate of the last step, at first the start, start, first) -> heatmaps (B, H, W, J) that enter a step
    enter: Callable[[Space, Array, Array, Array, Array], Array]
    # (space, y, estimate, step) -> y (B, J, 2) at t_next, in units of zeta; after the last step it is not used
    update: Callable[[Space, Array, Array, Step], Array]


def ddim_enter(space: Space, y: Array, estimate: Array, start: Array, first: Array) -> Array:
    """Draws y, except in the first step; here, as XLA:CPU copies each heatmap that the scan carries in every step."""
    return jax.lax.cond(first, lambda: start, lambda: space.draw(y))


def ddim_update(space: Space, y: Array, estimate: Array, step: Step) -> Array:
    """One DDIM step of the decoded joints."""
    return ddim_step(space.schedule, y, space.decode(estimate), step.t, step.t_next, step.eta, step.noise)


# A new rule is an entry here, and a choice of `sampler.update_rule` in recipe.py.
UPDATES = {
    # y~_{t-1} = D(y~_t, x^c): the paper's equation as written.
    "direct": Rule(lambda space, y, estimate, start, first: estimate, lambda space, y, estimate, step: y),
    # DDIM on coordinates (ours): decode y^_0, one DDIM step of the joints, draw anew.
    "ddim": Rule(ddim_enter, ddim_update),
}


def sample(
    coarse: Array,
    *,
    settings: SamplerSettings,
    schedule: Schedule,
    codec: Codec,
    condition: Callable[[Array], Array],
    denoise: Callable[[Array, Array, Array], Array],
    keys: Array,
) -> tuple[Array, Array]:
    """Runs K denoising steps from conv(x^fea), the coarse heatmaps (B, H, W, J).

    `condition` makes x^c, any array, of normalised joints (B, J, 2), once or, with `refresh`, in every step. `denoise`
    is D: (heatmaps (B, H, W, J), x^c, t (B,) int32) -> y^_0^hm (B, H, W, J). `keys` (B,) are one an example, so that a
    result never depends on its neighbours. Returns the final y^_0^hm, (B, H, W, J) float32, and the trajectory
    (K + 1, B, H, W, J): the heatmaps that entered each step, then the final ones.
    """
    batch, joints = coarse.shape[0], coarse.shape[-1]
    space, rule = Space(schedule, codec), UPDATES[settings.update_rule]

    def noise(index):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), (joints, 2)))(keys)

    def context_of(y):
        return condition(to_normalised(schedule, y))

    if settings.start == "random":
        y = noise(0)
    elif settings.start == "coarse_noised":
        y = q_sample(schedule, space.decode(coarse), jnp.full((batch,), settings.t_start), noise(0))
    else:
        y = schedule.zeta * space.decode(coarse)
    start = coarse if settings.start == "coarse" else space.draw(y)
    fixed = None if settings.refresh else context_of(y)

    def step(state, inputs):
        (estimate, y), (index, t, t_next) = state, inputs
        heatmaps = rule.enter(space, y, estimate, start, index == 1)
        context = context_of(schedule.zeta * space.decode(heatmaps)) if fixed is None else fixed
        estimate = denoise(heatmaps, context, jnp.full((batch,), t))
        y = rule.update(space, y, estimate, Step(t, t_next, settings.eta, noise(index)))
        return (estimate, y), heatmaps

    times = jnp.asarray(settings.times)
    (final, _), entered = jax.lax.scan(step, (start, y), (jnp.arange(1, settings.steps + 1), times[:-1], times[1:]))
    # At t = 0 the drawn joints are those of the last estimate, which also carries the scores.
    return final, jnp.concatenate([entered, final[None]])


def sampler_settings(sampler: Sampler) -> tuple[SamplerSettings, ...]:
    """One SamplerSettings for each K of `sampler.steps`."""
    names = [field.name for field in dataclasses.fields(SamplerSettings) if field.name != "steps"]
    return tuple(SamplerSettings(steps, **{name: getattr(sampler, name) for name in names}) for steps in sampler.steps)


def noised_start(settings: SamplerSettings, noise_time: int, timesteps: int) -> SamplerSettings:
    """The settings, but from coarse joints noised to t = `noise_time` (ours); ValueError if it is not in 1..T."""
    if not 1 <= noise_time <= timesteps:
        raise ValueError(f"noise_time={noise_time}: must lie in 1..T = {timesteps}")
    return dataclasses.replace(settings, start="coarse_noised", t_start=noise_time)
