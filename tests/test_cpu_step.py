"""The step of a training on one CPU, in two programs, against one program of trees."""

import jax
import numpy as np
import pytest

from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.runtime import flat, sharding
from dpose_jax.training.cpu_step import CpuStep
from dpose_jax.training.loop import prepare
from dpose_jax.training.optimizer import make_optimizer
from dpose_jax.training.step import make_train_step

HRNET = {"loss.diffusion": 0.0, "optim.ema": 0.5, "optim.weight_decay": 0.1}  # the least to compile


def kept(state):
    """The tree of a flat state, with copies of its counts, which a step takes."""
    return jax.tree.map(lambda leaf: leaf if leaf.ndim else np.array(leaf), flat.unflatten(state))


@pytest.mark.parametrize("fields", [{}, {"train.accumulate": 2}, {"optim.freeze_backbone_steps": 3}])
def test_two_steps_are_those_of_one_program(miniature, fields):
    """Statistics and averages too; a tree of the state stays while later steps take the memory of the vectors."""
    recipe = miniature().override(HRNET | fields)
    run = prepare(recipe)
    spec, batch = run.batch_spec(), sharding.put_batch(run.next_batch(), run.mesh)
    run.data.close()
    form = {name: (array.shape, array.dtype, array.sharding) for name, array in batch.items()}
    assert form == {name: (one.shape, one.dtype, one.sharding) for name, one in spec.items()}
    model = build_model(recipe).clone(freeze_backbone=recipe.optim.freeze_backbone_steps > 0)
    optimizer = make_optimizer(recipe.optim, recipe.train)
    one_program = jax.jit(make_train_step(recipe, model, build_schedule(recipe.diffusion), optimizer))
    assert isinstance(run.phases[0].step, CpuStep)
    run.phases[0].compile(run.state, spec, run.key)
    state, expected = run.state, kept(run.state)
    trees = []
    for number in (1, 2):
        state, metrics = run.train_step(number, state, batch)
        expected, of_one = one_program(expected, batch, run.key)
        trees.append((kept(state), expected))
        assert metrics.keys() == of_one.keys()
        np.testing.assert_allclose(metrics["loss"], of_one["loss"], rtol=1e-6)
    for tree, its_expected in trees:
        assert jax.tree.structure(tree) == jax.tree.structure(its_expected)
        # Adam divides by roots of squares: where a gradient is all rounding, so is the step.
        within = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)  # noqa: E731
        jax.tree.map(within, tree, its_expected)
    moved = jax.tree.map(lambda one, other: np.abs(one - other).max(), trees[0][0].params, trees[1][0].params)
    assert max(jax.tree.leaves(moved)) > 1e-4
