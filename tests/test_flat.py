"""Parameters as long vectors: the trees they stand for, and the updates of every optimizer on them."""

import jax
import numpy as np
import optax
import pytest

from dpose_jax.recipe import Recipe
from dpose_jax.runtime import flat
from dpose_jax.training.optimizer import make_optimizer
from dpose_jax.training.state import evaluated_variables, initial_state


@pytest.fixture
def variables():
    rng = np.random.default_rng(0)

    def module(*shapes):
        return {f"{i}": {"kernel": rng.normal(size=shape).astype(np.float32)} for i, shape in enumerate(shapes)}

    params = {"hrnet": module((3, 3, 2, 4), (4,), (), (5, 1)), "coarse_head": module((3,)), "decoder": module((2, 3))}
    return {"params": params, "batch_stats": {"hrnet": module((4,), (2,))}}


def flattened(variables):
    return {name: flat.flatten(modules) for name, modules in variables.items()}


def test_a_tree_comes_back(variables):
    """On the host and in a program, where kernels lie before all others; what is in neither stays."""
    whole = {"step": np.int32(3), **flattened(variables)}
    hrnet = whole["params"]["hrnet"]
    assert (hrnet.kernels.shape, hrnet.others.shape) == ((77,), (5,)) and len(jax.tree.leaves(hrnet)) == 2
    assert whole["batch_stats"]["hrnet"].kernels.shape == (0,)
    expected = {"step": np.int32(3), **variables}

    @jax.jit
    def doubled(whole):
        return flat.flatten_like(whole, jax.tree.map(lambda x: 2 * x, flat.unflatten(whole)))

    for times, found in (
        (np.float32(1), whole),
        (np.float32(2), doubled(whole)),
        (np.float32(1), flat.flatten_like(whole, expected)),
    ):
        assert jax.tree.structure(found) == jax.tree.structure(whole)
        jax.tree.map(np.testing.assert_array_equal, flat.unflatten(found), jax.tree.map(times.__mul__, expected))
    assert flat.flatten_like(expected, {"other": 1}) == {"other": 1}
    marks = flat.kernels(whole["params"])
    assert all((one.kernels, one.others) == (True, False) for one in marks.values()) and len(marks) == 3
    assert flat.kernels(variables["params"]) == jax.tree.map(lambda x: x.ndim > 1, variables["params"])


def test_what_a_step_overwrites_is_no_longer_that_of_the_tree(variables):
    """A checkpoint's arrays stay while the next step takes the memory of the vectors."""
    whole = flattened(variables)
    tree = flat.unflatten(whole)
    jax.block_until_ready(jax.jit(lambda x: jax.tree.map(lambda y: y * 0, x), donate_argnums=0)(whole))
    jax.tree.map(np.testing.assert_array_equal, tree, variables)


@pytest.mark.parametrize(
    "fields,kept",
    [
        ({"weight_decay": 0.1, "ema": 0.9, "clip_norm": 0.5}, ()),
        ({"weight_decay": 0.1, "ema": 0.9, "backbone_rate": 0.0}, ("hrnet", "coarse_head")),
        ({"weight_decay": 0.1, "backbone_rate": 0.1, "clip_norm": 0.0}, ()),
        ({"freeze_backbone_steps": 2, "ema": 0.9, "weight_decay": 0.1}, ()),
    ],
)
def test_updates_are_those_of_the_tree(variables, fields, kept):
    recipe = Recipe().override({f"optim.{name}": value for name, value in ({"warmup_steps": 1} | fields).items()})
    optimizer = make_optimizer(recipe.optim, recipe.train, kept)
    states = [initial_state(flattened(variables), optimizer), initial_state(variables, optimizer)]

    def step(state, number):
        stats = jax.tree.map(lambda x: x + number, state.batch_stats)
        gradients = jax.tree.map(lambda x: number + 0.1 * x, state.params)
        if kept:
            gradients |= {name: jax.tree.map(lambda x: 0 * x, gradients[name]) for name in kept}
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, batch_stats=stats)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, batch_stats=stats, opt_state=opt_state)

    step = jax.jit(step)
    for number in range(1, 5):
        states = [step(state, number) for state in states]
    found, expected = flat.unflatten(states[0]), states[1]
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    # The sum of squares alone, for clipping, has another order.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7), found, expected)
    averages = flat.unflatten(evaluated_variables(states[0], ema=True))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7),
        averages,
        evaluated_variables(expected, ema=True),
    )
