"""The train state, and which of its parameters an evaluation uses."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dpose_jax.training.optimizer import AverageState


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; trees by module, or on one CPU a `runtime.flat.Flat` for each module."""

    step: jax.Array  # int32 scalar, optimizer steps done
    params: Any  # float32 tree
    batch_stats: Any  # BatchNorm's running statistics, float32
    opt_state: Any  # of the optimizer, the moving averages inside


def initial_state(variables, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0 from initial variables (`params`, and `batch_stats` where a layer has them), which may be flat."""
    params, batch_stats = (jax.tree.map(jnp.asarray, variables.get(name, {})) for name in ("params", "batch_stats"))
    copies, parts = jax.tree.map(jnp.copy, batch_stats), optimizer.init(params)
    opt_state = tuple(part._replace(batch_stats=copies) if isinstance(part, AverageState) else part for part in parts)
    return TrainState(jnp.zeros([], jnp.int32), params, batch_stats, opt_state)


def evaluated_variables(state: TrainState, *, ema: bool) -> dict[str, Any]:
    """`params` and `batch_stats` to predict with: with `ema` the moving averages where there are any."""
    averages = [part for part in state.opt_state if isinstance(part, AverageState)]
    source = averages[0] if ema and averages else state
    return {"params": source.params, "batch_stats": source.batch_stats}
