"""The optimizer of a recipe: clipping, Adam, weight decay, the learning rate, moving averages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dpose_jax.models.weights.fill import BACKBONE
from dpose_jax.recipe import Optim, Recipe, Train
from dpose_jax.runtime.flat import kernels


class AverageState(NamedTuple):
    """Moving averages of parameters and BatchNorm statistics, and the number of updates that they have seen."""

    updates: jax.Array
    params: Any
    batch_stats: Any


def learning_rate(optim: Optim, train: Train) -> optax.Schedule:
    """Warm-up from 0, then `step` (x 0.1 at each share of `decay_at`) or `cosine` to 0.

    With `optim.base_batch` the rate is linear in the batch: `learning_rate` x `train.batch_size` / `base_batch`.
    """
    peak = optim.learning_rate * (train.batch_size / optim.base_batch if optim.base_batch else 1)
    if optim.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, train.steps - optim.warmup_steps)
    else:
        drops = {round(share * train.steps) - optim.warmup_steps: 0.1 for share in optim.decay_at}
        main = optax.piecewise_constant_schedule(peak, drops)
    warmup = optax.linear_schedule(0.0, peak, max(optim.warmup_steps, 1))
    return optax.join_schedules([warmup, main], [optim.warmup_steps]) if optim.warmup_steps else main


def kept_parts(recipe: Recipe) -> tuple[str, ...]:
    """What a run leaves as it is: HRNet at `optim.backbone_rate` 0, then also a coarse branch without a loss."""
    if recipe.optim.backbone_rate:
        return ()
    return (BACKBONE,) if recipe.loss.coarse else (BACKBONE, "coarse_head")


def make_optimizer(optim: Optim, train: Train, kept: tuple[str, ...] = ()) -> optax.GradientTransformationExtraArgs:
    """Clipping, Adam, decoupled weight decay on kernels, the learning rate, the moving averages.

    Its `update` takes `batch_stats` beside the parameters. The modules `kept` stay bit for bit; nothing is stored for
    them but their averages, which are the same.
    """
    direction = [optax.scale_by_adam()]
    if optim.weight_decay:
        direction.append(optax.add_decayed_weights(optim.weight_decay, mask=kernels))
    if kept:
        direction = [
            optax.partition({"free": optax.chain(*direction), **dict.fromkeys(kept, optax.set_to_zero())}, _parts(kept))
        ]
    elif optim.freeze_backbone_steps:
        direction = [frozen_until(optim.freeze_backbone_steps, BACKBONE, optax.chain(*direction))]
    parts = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    by_rate = optax.scale_by_learning_rate(learning_rate(optim, train))
    if 0 < optim.backbone_rate < 1:
        by_rate = _slower_backbone(by_rate, optim.backbone_rate)
    parts += [*direction, by_rate]
    if optim.ema:
        parts.append(average_variables(optim.ema, kept))
    return optax.with_extra_args_support(optax.chain(*parts))


def frozen_until(update: int, name: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, but the subtree `name` of the parameters, and the state for it, stay as they are for `update` updates.

    Afterwards Adam starts for this subtree as at a first step, moments and bias correction too.
    """
    later = optax.conditionally_mask(inner, lambda count: count >= update)
    # Labelled by part, so that a run that is resumed with another number of steps finds its state.
    return optax.partition({"free": inner, name: later}, _parts((name,)))


def _slower_backbone(inner: optax.GradientTransformation, rate: float) -> optax.GradientTransformation:
    """`inner`, its updates of the backbone times `rate`; with no state of its own, so that a run may change `rate`."""

    def update(updates, state, params=None):
        updates, state = inner.update(updates, state, params)
        return updates | {BACKBONE: jax.tree.map(lambda x: rate * x, updates[BACKBONE])}, state

    return optax.GradientTransformation(inner.init, update)


def _parts(names: tuple[str, ...]) -> Callable:
    """Labels for `optax.partition`: modules of `names` have their own, all others "free"."""
    return lambda params: {part: part if part in names else "free" for part in params}


def average_variables(decay: float, kept: tuple[str, ...] = ()) -> optax.GradientTransformationExtraArgs:
    """Exponential moving averages of parameters and BatchNorm statistics; last in a chain, it changes no update.

    The statistics are averaged too (ours, as timm and EfficientNet do): BatchNorm's own running values follow the
    newest parameters, whose activations are not those of the averaged ones. The decay warms up as
    min(decay, (1 + n) / (10 + n)) after n updates, so that short runs are not averaged with their initial values.
    Modules `kept` do not change, so their averages are not computed, which rounding would move. `update` takes
    `batch_stats`, those of the step; `init` gets none, see `state.initial_state`.
    """

    def init(params):
        return AverageState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.copy, params), {})

    def update(updates, state, params=None, *, batch_stats, **_):
        rate = jnp.minimum(decay, (1 + state.updates) / (10 + state.updates))
        new = optax.apply_updates(params, updates), batch_stats
        averages = jax.tree.map(lambda a, x: rate * a + (1 - rate) * x, (state.params, state.batch_stats), new)
        averages = [
            average | {name: now[name] for name in kept if name in now}
            for average, now in zip(averages, new, strict=True)
        ]
        return updates, AverageState(state.updates + 1, *averages)

    return optax.GradientTransformationExtraArgs(init, update)
