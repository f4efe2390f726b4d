"""One optimizer step: draw t and noise, the two-term loss, the gradient, the update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dpose_jax.diffusion.process import Schedule
from dpose_jax.models.diffusion_pose import DiffusionPose
from dpose_jax.recipe import Recipe
from dpose_jax.training.state import TrainState, learning_rate

LOSS_TERMS = ("loss_diffusion", "loss_coarse")
INPUTS = ("image", "keypoints", "visible", "t", "noise", "own")  # of the model, in its order


def heatmap_loss(
    predicted: jax.Array, target: jax.Array, visible: jax.Array, labelled: jax.Array | None = None
) -> jax.Array:
    """Mean over pixels and labelled joints of the squared error, in float32 (L2 of the paper; the mean is ours).

    Args:
      predicted, target: (B, H, W, J); visible: (B, J), 0 for an unlabelled joint, which then weighs nothing.
      labelled: scalar, the joints to divide by when these B examples are a part of the batch; by default their own.

    Returns:
      scalar; 0 if no joint is labelled.
    """
    error = jnp.mean((predicted.astype(jnp.float32) - target.astype(jnp.float32)) ** 2, axis=(1, 2))
    labelled = jnp.sum(visible) if labelled is None else labelled
    return jnp.sum(error * visible) / jnp.maximum(labelled, 1.0)


def split_batch(batch: Any, parts: int) -> Any:
    """(B, ...) leaves -> (parts, B / parts, ...): part p takes rows p, p + parts, ...

    Strided, so that a batch split over devices gives every part to all of them, and no row moves.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)


def draw_inputs(
    config: Recipe, step: jax.Array, batch: dict[str, jax.Array], key: jax.Array
) -> dict[str, jax.Array | None]:
    """The model's INPUTS of one step: from the batch, and drawn by the key and the step alone.

    Returns:
      leaves of leading axis B; `own` is None where its share is 0.
    """
    keys = jax.random.split(jax.random.fold_in(key, step), 3)
    low, high = config.diffusion.t_range
    count = batch["visible"].shape[0]

    def chosen(key, share):
        return jax.random.bernoulli(key, share, (count,)).astype(jnp.float32) if share else None

    return {
        "image": batch["image"],
        "keypoints": batch["keypoints"],
        "visible": batch["visible"],
        "t": jax.random.randint(keys[0], (count,), low, high + 1),
        "noise": jax.random.normal(keys[1], batch["keypoints"].shape),
        "own": chosen(keys[2], config.diffusion.own_share),
    }


def make_train_step(
    config: Recipe,
    model: DiffusionPose,
    schedule: Schedule,
    optimizer: optax.GradientTransformation,
    gather: Callable[[Any], Any] = lambda variables: variables,
) -> Callable:
    """Builds `(state, batch, key) -> (state, metrics)`, a pure function to be jitted with shardings.

    Randomness comes from the key, `jax.random.key(config.seed)`, and the step alone; it is an argument so that the
    seeds of a recipe share one compiled program. `metrics` holds float32 scalars: `loss`, each term of LOSS_TERMS,
    `grad_norm` and `learning_rate`; and the batch's `annotation_id` and `bad_index`, (B,) int32, so that every host
    learns of every host's.

    With `loss.diffusion` = 0 this is a plain HRNet with its coarse branch: the denoiser is
    neither run nor trained, and `loss_diffusion` is 0.

    With `train.accumulate` = A the batch is worked off in A parts, one after the other: loss and gradient are those
    of the whole batch, but BatchNorm normalises each part by its own statistics, and averages them A times a step.

    Args:
      gather: makes parameters and statistics whole where a state is split over devices (`parallel.gather`); the
        optimizer works on the split ones.
    """
    parts, rate = config.train.accumulate, learning_rate(config.optim, config.train)
    gradient_of = jax.value_and_grad(_make_loss(config, model, schedule), has_aux=True)

    def train_step(
        state: TrainState, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        rows, labelled = draw_inputs(config, state.step, batch, key), jnp.sum(batch["visible"])
        params, batch_stats = gather((state.params, state.batch_stats))

        def add_part(carry, part):
            batch_stats, sums = carry
            (loss, (terms, batch_stats)), gradients = gradient_of(params, batch_stats, part, labelled)
            return (batch_stats, jax.tree.map(jnp.add, sums, ({"loss": loss, **terms}, gradients))), None

        zeros = dict.fromkeys(("loss", *LOSS_TERMS), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params)
        carry = batch_stats, zeros
        if parts == 1:
            carry, _ = add_part(carry, rows)
        else:
            carry, _ = jax.lax.scan(add_part, carry, split_batch(rows, parts))
        batch_stats, (metrics, gradients) = carry
        metrics |= {"grad_norm": optax.tree.norm(gradients), "learning_rate": rate(state.step)}
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, batch_stats=batch_stats)
        params = optax.apply_updates(state.params, updates)
        metrics |= {name: batch[name] for name in ("annotation_id", "bad_index")}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step


def _make_loss(config: Recipe, model: DiffusionPose, schedule: Schedule) -> Callable:
    """Builds `(params, batch_stats, rows, labelled) -> (loss, (terms, batch_stats))`; rows are of `draw_inputs`."""
    weights = dict(zip(LOSS_TERMS, (config.loss.diffusion, config.loss.coarse), strict=True))

    def outputs_of(variables, rows):
        """The outputs by LOSS_TERMS, and the new statistics; without weight the denoiser is left out, at no cost."""
        if weights["loss_diffusion"]:
            inputs = (rows[name] for name in INPUTS)
            outputs, updated = model.apply(variables, *inputs, schedule=schedule, train=True, mutable=["batch_stats"])
            return dict(zip(LOSS_TERMS, outputs, strict=True)), updated["batch_stats"]
        (_, coarse), updated = model.apply(variables, rows["image"], True, method="encode", mutable=["batch_stats"])
        return {"loss_coarse": coarse}, updated["batch_stats"]

    def loss_of(params, batch_stats, rows, labelled):
        outputs, batch_stats = outputs_of({"params": params, "batch_stats": batch_stats}, rows)
        target = model.codec.encode(rows["keypoints"], rows["visible"])
        terms = dict.fromkeys(LOSS_TERMS, jnp.float32(0)) | {
            name: heatmap_loss(out, target, rows["visible"], labelled) for name, out in outputs.items()
        }
        return sum(weights[name] * term for name, term in terms.items()), (terms, batch_stats)

    return loss_of
