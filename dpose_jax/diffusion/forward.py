"""FDP: noise moves joints, never heatmap pixels."""

import jax
import jax.numpy as jnp

from dpose_jax.diffusion.schedule import Schedule


def q_sample(schedule: Schedule, y_0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """y_t = sqrt(gamma_t) (zeta y_0) + sqrt(1 - gamma_t) epsilon (the paper's forward process).

    Args:
      schedule: gamma_t and zeta.
      y_0: (..., J, 2) joints normalised to [-1, 1] over the map.
      t: integer in 0..T, broadcastable to y_0 without its last two axes.
      noise: (..., J, 2) standard normal epsilon.

    Returns:
      (..., J, 2) float32, unclamped, in units of zeta.
    """
    gamma = schedule.gamma(t)[..., None, None]
    return jnp.sqrt(gamma) * schedule.zeta * y_0 + jnp.sqrt(1 - gamma) * noise


def to_normalised(schedule: Schedule, y_t: jax.Array) -> jax.Array:
    """Clamps y_t to [-zeta, zeta] and divides by zeta: where noised joints are drawn, in [-1, 1].

    Only on the way to pixels: the diffusion state itself stays unclamped (ours).
    """
    return jnp.clip(y_t, -schedule.zeta, schedule.zeta) / schedule.zeta
