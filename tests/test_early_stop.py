"""The sampler's early stop: joints that no longer move cost no further step, and change nobody else's result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.diffusion.process import Schedule
from dpose_jax.diffusion.sampler import SamplerSettings, sample
from dpose_jax.pose.codec import Codec

CODEC = Codec((48, 40), 2, sigma=1.5, blur=5)
STEPS = 6
CALLS = []


def denoise(heatmaps, context, t):
    """Moves every joint seven tenths of its way to a place on the right; counts its own runs."""
    jax.debug.callback(lambda: CALLS.append(1))
    joints = CODEC.peaks(heatmaps, "dark")[0]
    goal = jnp.array([CODEC.size[1] - 4.0, CODEC.size[0] / 2])
    return CODEC.render(joints + 0.7 * (goal - joints), jnp.ones(joints.shape[:-1]))


@pytest.fixture(scope="module")
def run():
    def one(coarse, early_stop, rule="direct"):
        settings = SamplerSettings(steps=STEPS, update_rule=rule, early_stop=early_stop)
        keys = jax.random.split(jax.random.key(0), len(coarse))
        options = {"schedule": Schedule(), "codec": CODEC, "keys": keys, "condition": lambda y: y}
        return sample(coarse, settings=settings, denoise=denoise, **options)

    return jax.jit(one, static_argnums=(1, 2))


def start(*distances):
    """A joint an example, so far from the goal, in pixels."""
    joints = np.array([[[CODEC.size[1] - 4.0 - d, CODEC.size[0] / 2]] for d in distances], np.float32)
    return CODEC.render(joints, jnp.ones(joints.shape[:-1]))


def calls_of(function):
    CALLS.clear()
    found = jax.block_until_ready(function())
    jax.effects_barrier()
    return found, len(CALLS)


def test_a_bound_that_nothing_meets_changes_nothing(run):
    """The way of 12 pixels shrinks to .3 of itself a step, so its last step is 12 (.3^5 - .3^6) = .02."""
    (plain, all_steps), (same, many) = calls_of(lambda: run(start(12), 0.0)), calls_of(lambda: run(start(12), 0.005))
    assert all_steps == many == STEPS
    for one, other in zip(plain, same, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("bound", "steps"), [(20.0, 1), (8.0, 2), (1.0, 3), (0.1, 5)])
def test_steps_that_are_left_cost_nothing(run, bound, steps):
    """Step k moves by 12 (.3^(k-1) - .3^k) = 8.4, 2.52, .76, .23, .07: the first at or below the bound is the last."""
    _, trajectory = run(start(12), 0.0)
    (final, stopped), calls = calls_of(lambda: run(start(12), bound))
    assert calls == steps
    np.testing.assert_allclose(final, trajectory[steps], atol=1e-5)
    np.testing.assert_allclose(stopped[:steps], trajectory[:steps], atol=1e-5)
    for later in stopped[steps:]:
        np.testing.assert_array_equal(later, final)


@pytest.mark.parametrize("rule", ["direct", "ddim"])
def test_everybody_stops_alone(run, rule):
    """Together each has what it has alone, and the batch takes as long as the slower one."""
    (near, _), some = calls_of(lambda: run(start(0.5), 0.3, rule))
    (far, _), others = calls_of(lambda: run(start(12), 0.3, rule))
    (both, _), all_calls = calls_of(lambda: run(start(0.5, 12), 0.3, rule))
    assert some != others and all_calls == max(some, others) < STEPS
    np.testing.assert_allclose(both, np.concatenate([near, far]), atol=1e-6)


def test_a_negative_bound_is_refused():
    with pytest.raises(ValueError, match=r"sampler\.early_stop=-1\.0"):
        SamplerSettings(early_stop=-1.0)
