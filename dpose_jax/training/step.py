"""One optimizer step: draw t and noise, the two-term loss, the gradient, the update."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dpose_jax.diffusion.process import Schedule
from dpose_jax.models.diffusion_pose import DiffusionPose
from dpose_jax.models.layers import UNAVERAGED
from dpose_jax.recipe import Diffusion, Recipe
from dpose_jax.runtime import flat
from dpose_jax.runtime.sharding import each_nth
from dpose_jax.training.optimizer import learning_rate
from dpose_jax.training.state import TrainState

Arrays = dict[str, jax.Array]
LOSS_TERMS = ("loss_diffusion", "loss_coarse")
INPUTS = ("image", "keypoints", "visible", "t", "noise", "coarse_input")  # of the model, in its order


def make_train_step(
    recipe: Recipe,
    model: DiffusionPose,
    schedule: Schedule,
    optimizer: optax.GradientTransformationExtraArgs,
    unshard: Callable[[Any], Any] = lambda variables: variables,
) -> Callable:
    """Builds `(state, batch, key) -> (state, metrics)`, a pure function to be jitted with shardings.

    `metrics` holds float32 scalars: `loss`, each term of LOSS_TERMS, `grad_norm` and `learning_rate`; and the number of
    unreadable records in the batch, `bad_rows`, an int32 scalar, so that every host learns of every host's.

    `unshard` makes parameters and statistics whole where a state is split over devices (`sharding.unshard`); the
    optimizer works on the split ones.
    """
    gradients_of, update = make_gradients(recipe, model, schedule), make_update(recipe, optimizer)

    def train_step(state: TrainState, batch: Arrays, key: jax.Array) -> tuple[TrainState, Arrays]:
        variables = unshard((state.params, state.batch_stats))
        gradients, batch_stats, found = gradients_of(state.step, *variables, batch, key)
        state, metrics = update(state, gradients, batch_stats)
        return state, found | metrics

    return train_step


def make_gradients(recipe: Recipe, model: DiffusionPose, schedule: Schedule, *, moments: bool = False) -> Callable:
    """Builds `(step, params, batch_stats, batch, key) -> (gradients, batch_stats, metrics)` of `make_train_step`.

    With `moments` there are the batch's, to be averaged, instead of the new statistics of each BatchNorm that trains
    (`layers.averaged`). A frozen one gives its running statistics, which averaging leaves as they are.

    Randomness comes from the key, `jax.random.key(recipe.seed)`, and the step alone. The key is an argument so that
    the seeds of a recipe share one compiled program.

    With `loss.diffusion` = 0 this is a plain HRNet with its coarse branch: the denoiser is neither run nor trained,
    and `loss_diffusion` is 0. With `train.accumulate` = A the batch is computed in A parts, one after the other. Loss
    and gradient are those of the whole batch, but BatchNorm normalises each part by its own statistics, and averages
    them A times a step. With `diffusion.every` = N the diffusion term is the mean over each N-th example of a part, the
    coarse term over all.
    """
    parts = recipe.train.accumulate
    gradient_of = jax.value_and_grad(_make_loss(recipe, model, schedule, moments), has_aux=True)

    def gradients(step: jax.Array, params: Any, batch_stats: Any, batch: Arrays, key: jax.Array):
        inputs = draw_inputs(recipe.diffusion, step, batch, key)
        # Labelled joints of what each of LOSS_TERMS sees. Part p below has the rows p, p + parts, ...
        by_part = batch["visible"].reshape(-1, parts, batch["visible"].shape[1])
        labelled = jnp.sum(each_nth(by_part, recipe.diffusion.every)), jnp.sum(by_part)

        def of_part(batch_stats, part):
            (loss, (terms, batch_stats)), gradients = gradient_of(params, batch_stats, part, labelled)
            return batch_stats, ({"loss": loss, **terms}, gradients)

        def add_part(carry, part):
            batch_stats, found = of_part(carry[0], part)
            return (batch_stats, jax.tree.map(jnp.add, carry[1], found)), None

        if parts == 1:
            batch_stats, (metrics, gradients) = of_part(batch_stats, inputs)
        else:
            zeros = dict.fromkeys(("loss", *LOSS_TERMS), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params)
            # Part p takes the rows p, p + parts, ...: strided, so that a batch that is split over devices gives every
            # part to all of them, and no row moves.
            split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), inputs)
            (batch_stats, (metrics, gradients)), _ = jax.lax.scan(add_part, (batch_stats, zeros), split)
        return gradients, batch_stats, metrics | {"bad_rows": jnp.sum(batch["bad_index"] >= 0)}

    return gradients


def make_update(recipe: Recipe, optimizer: optax.GradientTransformationExtraArgs) -> Callable:
    """Builds `(state, gradients, batch_stats) -> (state, metrics)` of `make_train_step`, for trees or a flat state."""
    rate = learning_rate(recipe.optim, recipe.train)

    def update(state: TrainState, gradients: Any, batch_stats: Any) -> tuple[TrainState, Arrays]:
        metrics = {"grad_norm": optax.tree.norm(gradients), "learning_rate": rate(state.step)}
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, batch_stats=batch_stats)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return update


def kept_activations(recipe: Recipe, model: DiffusionPose, schedule: Schedule, state: TrainState, batch: Any) -> int:
    """Bytes of the values that the backward pass of a step needs, from shapes alone, over all devices.

    `batch` may be its shapes: `jax.ShapeDtypeStruct` instead of arrays.

    XLA needs more, for W32 on a CPU half as much again. Nothing is compiled.
    """
    loss_of = _make_loss(recipe, model, schedule)

    def backward(state: TrainState, batch: Arrays, key: jax.Array) -> Callable:
        state, inputs = flat.unflatten(state), draw_inputs(recipe.diffusion, state.step, batch, key)
        return jax.vjp(lambda params: loss_of(params, state.batch_stats, inputs, (1.0, 1.0))[0], state.params)[1]

    kept = jax.eval_shape(backward, state, batch, jax.random.key(0))

    def count(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    return max(0, count(kept) - count(state.params)) // recipe.train.accumulate


def draw_inputs(diffusion: Diffusion, step: jax.Array, batch: Arrays, key: jax.Array) -> dict[str, jax.Array | None]:
    """The model's INPUTS of one step, of leading axis B: from the batch, and drawn by the key and the step alone.

    `coarse_input` is None where its share is 0.
    """
    t_key, noise_key, coarse_key = jax.random.split(jax.random.fold_in(key, step), 3)
    low, high = diffusion.t_range
    count, share = batch["visible"].shape[0], diffusion.own_share
    return {
        **{name: batch[name] for name in ("image", "keypoints", "visible")},
        "t": jax.random.randint(t_key, (count,), low, high + 1),
        "noise": jax.random.normal(noise_key, batch["keypoints"].shape),
        "coarse_input": jax.random.bernoulli(coarse_key, share, (count,)).astype(jnp.float32) if share else None,
    }


def _make_loss(recipe: Recipe, model: DiffusionPose, schedule: Schedule, moments: bool = False) -> Callable:
    """Builds `(params, batch_stats, inputs, labelled) -> (loss, (terms, batch_stats))`; `labelled` for each term."""
    weights, every = recipe.loss, recipe.diffusion.every
    mutable = ["batch_stats", UNAVERAGED] if moments else ["batch_stats"]

    def loss_of(params, batch_stats, inputs, labelled):
        apply = functools.partial(model.apply, {"params": params, "batch_stats": batch_stats}, mutable=mutable)
        target = model.codec.encode(inputs["keypoints"], inputs["visible"])

        if weights.diffusion:
            outputs, updated = apply(*(inputs[name] for name in INPUTS), schedule=schedule, train=True, every=every)
            seen = (each_nth(rows, every) for rows in (target, inputs["visible"]))
            diffusion, heatmaps = heatmap_loss(outputs.diffusion, *seen, labelled[0]), outputs.coarse
        else:
            (_, heatmaps), updated = apply(inputs["image"], True, method="encode")
            diffusion = jnp.float32(0)
        coarse = heatmap_loss(heatmaps, target, inputs["visible"], labelled[1])
        loss = weights.diffusion * diffusion
        if weights.coarse:
            loss = loss + weights.coarse * coarse
        return loss, (dict(zip(LOSS_TERMS, (diffusion, coarse), strict=True)), updated["batch_stats"])

    return loss_of


def heatmap_loss(
    predicted: jax.Array, target: jax.Array, visible: jax.Array, labelled: jax.Array | None = None
) -> jax.Array:
    """Mean over pixels and labelled joints of the squared error, in float32 (L2 of the paper; the mean is ours).

    `predicted` and `target` are (B, H, W, J); `visible` (B, J) is 0 for an unlabelled joint, which then weighs nothing.
    `labelled` is a scalar, the joints to divide by when these B examples are a part of the batch; by default their own.
    Returns a scalar; 0 if no joint is labelled.
    """
    error = jnp.mean((predicted.astype(jnp.float32) - target.astype(jnp.float32)) ** 2, axis=(1, 2))
    labelled = jnp.sum(visible) if labelled is None else labelled
    return jnp.sum(error * visible) / jnp.maximum(labelled, 1.0)
