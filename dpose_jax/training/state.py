"""The train state and its optimizer, built from a config."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

SCHEDULES = ("step", "cosine")


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, optimizer steps done.
      params: float32 tree; batch_stats: BatchNorm's running statistics, float32.
      opt_state: of the optimizer, the parameters' moving average inside.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


class AverageState(NamedTuple):
    """Moving average of the parameters, and the number of updates that it has seen."""

    updates: jax.Array
    average: Any


def average_params(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters; passes the updates through (last in a chain).

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that short runs are not averaged
    with their initial values.
    """

    def init(params):
        return AverageState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state, params):
        rate = jnp.minimum(decay, (1 + state.updates) / (10 + state.updates))
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, state.average, new)
        return updates, AverageState(state.updates + 1, average)

    return optax.GradientTransformation(init, update)


def averaged_params(state: TrainState) -> Any | None:
    """The moving average of the parameters, or None where the optimizer keeps none."""
    found = [part for part in state.opt_state if isinstance(part, AverageState)]
    return found[0].average if found else None


def learning_rate(config) -> optax.Schedule:
    """Warm-up from 0, then `step` (x 0.1 at each share of `decay_at`) or `cosine` to 0.

    Raises:
      ValueError: if a field of `config.optim` is out of range.
    """
    optim, steps = config.optim, config.train.steps
    if optim.schedule not in SCHEDULES:
        raise ValueError(f"optim.schedule={optim.schedule!r}: must be one of {SCHEDULES}")
    if not optim.learning_rate > 0:
        raise ValueError(f"optim.learning_rate={optim.learning_rate}: must be positive")
    if not 0 <= optim.warmup_steps < steps:
        raise ValueError(f"optim.warmup_steps={optim.warmup_steps}: must lie in [0, train.steps={steps})")
    after = steps - optim.warmup_steps
    if optim.schedule == "cosine":
        main = optax.cosine_decay_schedule(optim.learning_rate, after)
    else:
        drops = {round(share * steps) - optim.warmup_steps: 0.1 for share in optim.decay_at}
        main = optax.piecewise_constant_schedule(optim.learning_rate, drops)
    warmup = optax.linear_schedule(0.0, optim.learning_rate, max(optim.warmup_steps, 1))
    return optax.join_schedules([warmup, main], [optim.warmup_steps]) if optim.warmup_steps else main


def make_optimizer(config) -> optax.GradientTransformation:
    """Clipping, Adam, decoupled weight decay on kernels, the learning rate, the moving average.

    Raises:
      ValueError: if a field of `config.optim` is out of range.
    """
    optim = config.optim
    for field in ("clip_norm", "weight_decay", "freeze_backbone_steps"):
        if getattr(optim, field) < 0:
            raise ValueError(f"optim.{field}={getattr(optim, field)}: must not be negative")
    if not 0 <= optim.ema < 1:
        raise ValueError(f"optim.ema={optim.ema}: must lie in [0, 1)")

    def kernels(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    parts = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    direction = [optax.scale_by_adam()]
    if optim.weight_decay:
        direction.append(optax.add_decayed_weights(optim.weight_decay, mask=kernels))
    if optim.freeze_backbone_steps:
        direction = [hold_backbone(optax.chain(*direction), optim.freeze_backbone_steps)]
    parts += direction
    parts.append(optax.scale_by_learning_rate(learning_rate(config)))
    if optim.ema:
        parts.append(average_params(optim.ema))
    return optax.chain(*parts)


def hold_backbone(inner: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """`inner`, which leaves HRNet and what it knows of HRNet alone for the first `steps` updates.

    After them Adam starts for HRNet as at a first step: neither its moments nor its bias correction have seen the
    updates without a gradient.
    """
    held = optax.conditionally_mask(inner, lambda update: update >= steps)
    return optax.partition({True: held, False: inner}, lambda params: {name: name == "hrnet" for name in params})


def initial_state(variables, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0 from initial variables (`params`, `batch_stats`)."""
    params = jax.tree.map(jnp.asarray, variables["params"])
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        params=params,
        batch_stats=jax.tree.map(jnp.asarray, variables["batch_stats"]),
        opt_state=optimizer.init(params),
    )


def count_parameters(params) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
