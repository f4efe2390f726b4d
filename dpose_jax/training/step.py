"""One optimizer step: draw t and noise, the two-term loss, the gradient, the update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dpose_jax.diffusion.schedule import Schedule
from dpose_jax.models.diffusion_pose import DiffusionPose
from dpose_jax.training.state import TrainState

LOSS_TERMS = ("loss_diffusion", "loss_coarse")


def heatmap_loss(predicted: jax.Array, target: jax.Array, visible: jax.Array) -> jax.Array:
    """Mean over pixels and labelled joints of the squared error, in float32 (L2 of the paper; the mean is ours).

    Args:
      predicted, target: (B, H, W, J); visible: (B, J), 0 for an unlabelled joint, which then weighs nothing.

    Returns:
      scalar; 0 if no joint is labelled.
    """
    error = jnp.mean((predicted.astype(jnp.float32) - target.astype(jnp.float32)) ** 2, axis=(1, 2))
    return jnp.sum(error * visible) / jnp.maximum(jnp.sum(visible), 1.0)


def make_train_step(
    config, model: DiffusionPose, schedule: Schedule, optimizer: optax.GradientTransformation
) -> Callable:
    """Builds `(state, batch) -> (state, metrics)`, a pure function to be jitted with shardings.

    Randomness comes from `config.seed` and the step alone. `metrics` holds float32 scalars: `loss`, each term of
    LOSS_TERMS and `grad_norm`.

    Raises:
      ValueError: if `diffusion.t_range` or `diffusion.own_share` is out of range.
    """
    low, high = config.diffusion.t_range
    if not 1 <= low <= high <= schedule.timesteps:
        raise ValueError(f"diffusion.t_range={(low, high)}: must be 1 <= low <= high <= T = {schedule.timesteps}")
    share = config.diffusion.own_share
    if not 0 <= share <= 1:
        raise ValueError(f"diffusion.own_share={share}: must lie in [0, 1]")
    weights = dict(zip(LOSS_TERMS, (config.loss.diffusion, config.loss.coarse), strict=True))
    seed = config.seed

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), 3)
        count = batch["visible"].shape[0]
        t = jax.random.randint(keys[0], (count,), low, high + 1)
        noise = jax.random.normal(keys[1], batch["keypoints"].shape)
        own = jax.random.bernoulli(keys[2], share, (count,)).astype(jnp.float32) if share else None
        target = model.codec.encode(batch["keypoints"], batch["visible"])

        def loss_of(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            inputs = (batch["image"], batch["keypoints"], batch["visible"], t, noise, own)
            (estimate, coarse), updated = model.apply(
                variables, *inputs, schedule=schedule, train=True, mutable=["batch_stats"]
            )
            terms = {
                "loss_diffusion": heatmap_loss(estimate, target, batch["visible"]),
                "loss_coarse": heatmap_loss(coarse, target, batch["visible"]),
            }
            return sum(weights[name] * term for name, term in terms.items()), (terms, updated["batch_stats"])

        (loss, (terms, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(gradients)}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step
