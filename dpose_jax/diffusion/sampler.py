"""RDP: from the coarse heatmaps to the joints, as one `lax.scan`; knows no network, only functions."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.diffusion.process import Schedule, ddim_step, q_sample, to_normalised
from dpose_jax.pose.codec import Codec

UPDATE_RULES = ("direct", "ddim")
STARTS = ("coarse", "coarse_noised", "random")


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """What a sampling run is made of.

    Attributes:
      steps: K in 1..t_start, decoder passes.
      update_rule: `direct`: y~_{t-1} = D(y~_t, x^c), the paper's equation as written; `ddim` (ours): decode
        y^_0, one DDIM step on the joints, draw anew.
      start: `coarse` (the paper): conv(x^fea) itself; `coarse_noised`: its joints sent forward to
        t_start and drawn; `random`: joints from N(0, 1), which is what y is at T.
      t_start: in 1..T, the time of the start; the paper recipe starts at T.
      eta: of DDIM, in [0, 1].
      refresh: draw the masks anew at every step, else once from the start (the paper).
      early_stop: heatmap pixels; a person none of whose joints moved further in a step is done, and once a whole
        batch is done the steps that are left cost nothing. 0 takes all steps (ours).
      mirrored: with the flip test, denoise the mirrored crop too and average the results; else only its coarse
        heatmaps are averaged, into the start, and the denoiser sees half as many crops (ours).
    """

    steps: int = 4
    update_rule: str = "direct"
    start: str = "coarse"
    t_start: int = 1000
    eta: float = 0.0
    refresh: bool = False
    early_stop: float = 0.0
    mirrored: bool = True

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"sampler.steps={self.steps}: must be at least 1 (the coarse branch is always reported)")
        if self.update_rule not in UPDATE_RULES:
            raise ValueError(f"sampler.update_rule={self.update_rule!r}: must be one of {UPDATE_RULES}")
        if self.start not in STARTS:
            raise ValueError(f"sampler.start={self.start!r}: must be one of {STARTS}")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"sampler.eta={self.eta}: must lie in [0, 1]")
        if not self.early_stop >= 0:
            raise ValueError(f"sampler.early_stop={self.early_stop}: must not be negative")
        if self.t_start < 1:
            raise ValueError(f"sampler.t_start={self.t_start}: must be at least 1")
        # Two times that round to 0 would make the DDIM step divide by 1 - gamma_0 = 0.
        if self.steps > self.t_start:
            raise ValueError(f"sampler.steps={self.steps}: must not exceed sampler.t_start={self.t_start}")

    @property
    def times(self) -> np.ndarray:
        """(K + 1,) int32, round(linspace(t_start, 0, K + 1)): the skipped steps' times."""
        return np.round(np.linspace(self.t_start, 0, self.steps + 1)).astype(np.int32)


def sample(
    coarse: jax.Array,
    *,
    settings: SamplerSettings,
    schedule: Schedule,
    codec: Codec,
    condition: Callable[[jax.Array], jax.Array],
    denoise: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    keys: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Runs K denoising steps and returns y~_0^hm.

    Args:
      coarse: (B, H, W, J) conv(x^fea), the start of the paper.
      settings: the run; schedule: gamma_t, zeta; codec: decodes and draws.
      condition: normalised joints (B, J, 2) -> x^c (any array); draws the masks and applies SC-CA.
        Called once before the scan, or in every step with `refresh`.
      denoise: D: (heatmaps (B, H, W, J), x^c, t (B,) int32) -> y^_0^hm (B, H, W, J).
      keys: (B,) random keys, one an example, so that a result never depends on its neighbours.

    Returns:
      The final y^_0^hm, (B, H, W, J) float32, and the trajectory (K + 1, B, H, W, J): the
      heatmaps that entered each step (the final ones, where early stop left it out), then the final ones.
    """
    batch, joints = coarse.shape[0], coarse.shape[-1]
    seen = jnp.ones((batch, joints), jnp.float32)

    def joints_of(heatmaps):
        return codec.normalise(codec.peaks(heatmaps, "dark")[0])

    def draw(y):
        return codec.render(codec.denormalise(to_normalised(schedule, y)), seen)

    def noise(step):
        draw_one = lambda key: jax.random.normal(jax.random.fold_in(key, step), (joints, 2))  # noqa: E731
        return jax.vmap(draw_one)(keys)

    def guide(y):
        return condition(to_normalised(schedule, y))

    times = jnp.asarray(settings.times)
    if settings.start == "random":
        y = noise(0)
    elif settings.start == "coarse_noised":
        y = q_sample(schedule, joints_of(coarse), jnp.full((batch,), settings.t_start), noise(0))
    else:
        y = schedule.zeta * joints_of(coarse)
    start = coarse if settings.start == "coarse" else draw(y)
    fixed = None if settings.refresh else guide(y)

    def entering(estimate, y, index):
        if settings.update_rule == "direct":
            return estimate
        # Drawn where they are used: on XLA:CPU each map more that the scan carries is copied in every step.
        return jax.lax.cond(index == 1, lambda: start, lambda: draw(y))

    def advance(estimate, y, index, t, t_next):
        heatmaps = entering(estimate, y, index)
        context = guide(schedule.zeta * joints_of(heatmaps)) if fixed is None else fixed
        estimate = denoise(heatmaps, context, jnp.full((batch,), t))
        if settings.update_rule == "ddim":
            y = ddim_step(schedule, y, joints_of(estimate), t, t_next, settings.eta, noise(index))
        return estimate, y, heatmaps

    def step(carry, inputs):
        estimate, y, entered = advance(*carry, *inputs)
        return (estimate, y), entered

    inputs = (jnp.arange(1, settings.steps + 1), times[:-1], times[1:])
    if settings.early_stop:
        step_until_still = _until_still(advance, codec, settings.early_stop)
        (_, final, _), entered = jax.lax.scan(step_until_still, (jnp.ones((batch,), bool), start, y), inputs)
    else:
        (final, _), entered = jax.lax.scan(step, (start, y), inputs)
    # At t = 0 the drawn joints are those of the last estimate, which also carries the scores.
    return final, jnp.concatenate([entered, final[None]])


def _until_still(advance: Callable, codec: Codec, bound: float) -> Callable:
    """A step of a scan over (moving (B,), estimate, y), which leaves the persons that no longer move as they are."""

    def step(carry, inputs):
        moving, *before = carry
        kept = (*before, before[0])
        after = jax.lax.cond(jnp.any(moving), lambda: advance(*before, *inputs), lambda: kept)
        # Each person stops alone, so that nobody's result depends on who else is in the batch.
        estimate, y, entered = (jnp.where(_like(moving, new), new, old) for new, old in zip(after, kept, strict=True))
        distance = jnp.linalg.norm(codec.peaks(estimate, "dark")[0] - codec.peaks(before[0], "dark")[0], axis=-1)
        return (moving & jnp.any(distance > bound, axis=-1), estimate, y), entered

    return step


def _like(flags: jax.Array, array: jax.Array) -> jax.Array:
    """(B,) flags to broadcast against (B, ...)."""
    return flags.reshape(-1, *[1] * (array.ndim - 1))


def sampler_settings(config) -> tuple[SamplerSettings, ...]:
    """One SamplerSettings for each K of `config.sampler.steps`.

    Raises:
      ValueError: if a field of `config.sampler` is out of range, or `ddim` would take random joints for those of t < T.
    """
    fields, last = config.sampler.to_dict(), config.diffusion.timesteps
    del fields["seed"]
    steps = fields.pop("steps")
    if fields["t_start"] > last:
        raise ValueError(f"sampler.t_start={fields['t_start']}: must not exceed T = {last}")
    if (fields["start"], fields["update_rule"]) == ("random", "ddim") and fields["t_start"] != last:
        raise ValueError(
            f"sampler.t_start={fields['t_start']}: must be T = {last} for ddim with sampler.start='random'"
        )
    if not steps or len(set(steps)) != len(steps):
        raise ValueError(f"sampler.steps={steps}: must be one or more distinct numbers of steps")
    return tuple(SamplerSettings(steps=k, **fields) for k in steps)


def noised_start(settings: SamplerSettings, noise_time: int, timesteps: int) -> SamplerSettings:
    """The settings, but from coarse joints noised to t = `noise_time` of T = `timesteps` (ours).

    Raises:
      ValueError: if `noise_time` does not lie in 1..T.
    """
    if not 1 <= noise_time <= timesteps:
        raise ValueError(f"noise_time={noise_time}: must lie in 1..T = {timesteps}")
    return dataclasses.replace(settings, start="coarse_noised", t_start=noise_time)
