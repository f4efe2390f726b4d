"""RDP: from the coarse heatmaps to the joints, as one `lax.scan`; knows no network, only functions."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.diffusion.process import Schedule, ddim_step, q_sample, to_normalised
from dpose_jax.pose.codec import Codec
from dpose_jax.recipe import Sampler

UPDATE_RULES = ("direct", "ddim")


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
      mirrored: with the flip test, denoise the mirrored crop too and average the results; else only its coarse
        heatmaps are averaged, into the start, and the denoiser sees half as many crops (ours).
    """

    steps: int = 4
    update_rule: str = "direct"
    start: str = "coarse"
    t_start: int = 1000
    eta: float = 0.0
    refresh: bool = False
    mirrored: bool = True

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
      heatmaps that entered each step, then the final ones.
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
    (final, _), entered = jax.lax.scan(step, (start, y), inputs)
    # At t = 0 the drawn joints are those of the last estimate, which also carries the scores.
    return final, jnp.concatenate([entered, final[None]])


def sampler_settings(sampler: Sampler) -> tuple[SamplerSettings, ...]:
    """One SamplerSettings for each K of `sampler.steps`."""
    return tuple(
        SamplerSettings(
            steps=steps,
            update_rule=sampler.update_rule,
            start=sampler.start,
            t_start=sampler.t_start,
            eta=sampler.eta,
            refresh=sampler.refresh,
            mirrored=sampler.mirrored,
        )
        for steps in sampler.steps
    )


def noised_start(settings: SamplerSettings, noise_time: int, timesteps: int) -> SamplerSettings:
    """The settings, but from coarse joints noised to t = `noise_time` of T = `timesteps` (ours).

    Raises:
      ValueError: if `noise_time` does not lie in 1..T.
    """
    if not 1 <= noise_time <= timesteps:
        raise ValueError(f"noise_time={noise_time}: must lie in 1..T = {timesteps}")
    return dataclasses.replace(settings, start="coarse_noised", t_start=noise_time)
