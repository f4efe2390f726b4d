"""The diffusion process: gamma_t, q_sample and the DDIM step. Noise moves joints, never heatmap pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The noise schedule gamma_0 = 1 .. gamma_T."""

    # `cosine` (offset 0.008) (ours, after improved DDPM) or `linear` (ours, after DDPM): beta from 1e-4 to 0.02 at
    # T = 1000, times 1000 / T at other T, where gamma_T differs: 4.0e-5 at T = 1000, 2.0e-5 at T = 100.
    name: str = "cosine"
    timesteps: int = 1000  # T, at least 1 (ours, after DDPM)
    zeta: float = 2.0  # signal scale, positive (ours)

    def gamma(self, t: jax.Array) -> jax.Array:
        """gamma_t = prod_{s <= t} (1 - beta_s), float32 in (0, 1], for integer t in 0..T of any shape."""
        return jnp.asarray(gamma_table(self.name, self.timesteps))[t]


def gamma_table(name: str, timesteps: int) -> np.ndarray:
    """(T + 1,) float32 gamma_0 .. gamma_T, computed in float64."""
    if name == "cosine":
        angle = (np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * np.pi / 2
        closed = np.cos(angle) ** 2
        betas = 1 - closed[1:] / closed[:-1]
    else:
        betas = np.linspace(1e-4, 0.02, timesteps) * 1000 / timesteps
    # Clipped, so that the cosine leaves its closed form only at t = T.
    return np.concatenate([[1.0], np.cumprod(1 - np.minimum(betas, 0.999))]).astype(np.float32)


def q_sample(schedule: Schedule, y_0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """y_t = sqrt(gamma_t) (zeta y_0) + sqrt(1 - gamma_t) epsilon (the paper's forward process).

    Joints y_0 (..., J, 2) are in [-1, 1], t in 0..T broadcasts to (...); y_t is float32, unclamped, in units of zeta.
    """
    gamma = schedule.gamma(t)[..., None, None]
    return jnp.sqrt(gamma) * schedule.zeta * y_0 + jnp.sqrt(1 - gamma) * noise


def to_normalised(schedule: Schedule, y_t: jax.Array) -> jax.Array:
    """Where y_t is drawn, in [-1, 1]: clamped to [-zeta, zeta], as the diffusion state is not (ours), over zeta."""
    return jnp.clip(y_t, -schedule.zeta, schedule.zeta) / schedule.zeta


def ddim_step(
    schedule: Schedule, y_t: jax.Array, y_0: jax.Array, t: jax.Array, t_next: jax.Array, eta: float, noise: jax.Array
) -> jax.Array:
    """One DDIM step from t to t_next, which may skip times, given an estimate of y_0 (Song et al., ICLR 2021, eq. 12).

    y_t, (..., J, 2), is the unclamped state in units of zeta, y_0 in [-1, 1]. Integers t in 1..T and t_next in 0..t-1
    broadcast to y_t. eta = 0 is deterministic, 1 has the variance of the ancestral sampler. Returns y at t_next.
    """
    gamma, gamma_next = schedule.gamma(t), schedule.gamma(t_next)
    signal = schedule.zeta * y_0
    epsilon = (y_t - jnp.sqrt(gamma) * signal) / jnp.sqrt(1 - gamma)
    sigma = eta * jnp.sqrt((1 - gamma_next) / (1 - gamma) * (1 - gamma / gamma_next))
    # 1 - gamma_next - sigma^2, without the difference of near numbers that it is at eta = 1.
    kept = gamma / gamma_next * (1 - gamma_next) / (1 - gamma)
    direction = jnp.sqrt((1 - gamma_next) * (1 - eta**2 + eta**2 * kept))
    return jnp.sqrt(gamma_next) * signal + direction * epsilon + sigma * noise
