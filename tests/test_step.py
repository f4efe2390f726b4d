import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.diffusion.process import Schedule
from dpose_jax.models.diffusion_pose import Outputs
from dpose_jax.training.state import TrainState
from dpose_jax.training.step import heatmap_loss, make_train_step

BATCH, JOINTS = 3, 17


def draw_batch():
    rng = np.random.default_rng(0)
    return {
        "image": np.zeros((BATCH, 64, 32, 3), np.uint8),
        "keypoints": (rng.random((BATCH, JOINTS, 2)) * (31, 63)).astype(np.float32),
        "visible": (np.arange(BATCH * JOINTS).reshape(BATCH, JOINTS) % 4 > 0).astype(np.float32),
        "annotation_id": np.arange(BATCH, dtype=np.int32),
        "bad_index": np.where(np.arange(BATCH) == 1, 5, -1).astype(np.int32),
    }


def test_loss_without_a_labelled_joint_is_zero():
    maps = np.random.default_rng(0).random((2, 2, 4, 4, 3))
    assert heatmap_loss(*maps, np.zeros((2, 3))) == 0


class Echo:
    """Stands in for the model: its outputs are known, and it shows what the step has drawn."""

    def __init__(self, codec, outputs):
        self.codec, self._outputs = codec, outputs

    def apply(self, variables, images, *inputs, mutable, method="__call__", **_):
        outputs = Outputs(*(out * variables["params"]["gain"] for out in self._outputs))
        if method == "encode":
            return (None, outputs.coarse), {"batch_stats": {}}
        _, _, t, noise, coarse_input = inputs
        return outputs, {"batch_stats": {"t": t, "noise": noise, "coarse_input": coarse_input}}


@pytest.fixture(scope="module")
def echo(small_model, miniature):
    """A function from overrides to a jitted step around the stand-in, and its outputs."""
    rng = np.random.default_rng(0)
    outputs = rng.random((2, BATCH, 16, 8, JOINTS), np.float32)
    # No update: the optimizer gives the gradient out instead.
    optimizer = types.SimpleNamespace(
        update=lambda gradients, state, params, batch_stats: (jax.tree.map(jnp.zeros_like, gradients), gradients)
    )

    def build(**overrides):
        step = jax.jit(
            make_train_step(miniature(**overrides), Echo(small_model().codec, outputs), Schedule(), optimizer)
        )
        batch = draw_batch()

        def run(number, seed=0):
            state = TrainState(jnp.int32(number), {"gain": jnp.float32(1)}, {}, None)
            return jax.device_get(step(state, batch, jax.random.key(seed)))

        return run, outputs

    return build


def test_step_weighs_the_terms_and_gives_their_gradient(echo, small_model):
    run, outputs = echo(loss__diffusion=2.0, loss__coarse=0.5)
    state, metrics = run(0)
    batch = draw_batch()
    target = np.asarray(small_model().codec.encode(batch["keypoints"], batch["visible"]))
    labelled = batch["visible"].sum()

    def term(out):
        return ((out - target) ** 2).mean((1, 2))[batch["visible"] > 0].sum() / labelled

    def slope(out):
        return (2 * (out - target) * out).mean((1, 2))[batch["visible"] > 0].sum() / labelled

    np.testing.assert_allclose(metrics["loss_diffusion"], term(outputs[0]), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_coarse"], term(outputs[1]), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], 2 * term(outputs[0]) + 0.5 * term(outputs[1]), rtol=1e-5)
    gradient = 2 * slope(outputs[0]) + 0.5 * slope(outputs[1])
    np.testing.assert_allclose(state.opt_state["gain"], gradient, rtol=1e-4)
    np.testing.assert_allclose(metrics["grad_norm"], abs(gradient), rtol=1e-4)
    assert metrics["bad_rows"] == 1


def test_without_its_weight_the_denoiser_is_not_run(echo):
    both, plain = (echo(loss__diffusion=weight, loss__coarse=0.5)[0](0)[1] for weight in (1.0, 0.0))
    assert plain["loss_coarse"] == both["loss_coarse"] and plain["loss_diffusion"] == 0
    np.testing.assert_allclose(plain["loss"], 0.5 * both["loss_coarse"], rtol=1e-6)


def test_step_draws_from_key_and_step_alone(echo):
    first, again = echo(seed=0)[0], echo(seed=1)[0]  # the config's own seed is not compiled in
    reference = first(7)[0].batch_stats
    np.testing.assert_array_equal(again(7)[0].batch_stats["noise"], reference["noise"])
    for drawn in (first(8)[0].batch_stats, first(7, seed=1)[0].batch_stats):
        assert not np.isclose(drawn["noise"], reference["noise"]).any()


def test_step_draws_from_the_ranges_of_the_config(echo):
    """t fills its closed range, noise is standard normal, coarse heatmaps come in their share."""
    run, _ = echo(diffusion__t_range=(3, 6), diffusion__own_share=0.25)
    drawn = [run(number)[0].batch_stats for number in range(300)]
    t, noise, coarse = (np.concatenate([d[name] for d in drawn]) for name in ("t", "noise", "coarse_input"))
    values, counts = np.unique(t, return_counts=True)
    np.testing.assert_array_equal(values, [3, 4, 5, 6])
    assert np.abs(counts / t.size - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / t.size)
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size) and abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
    assert set(coarse) == {0.0, 1.0}
    assert abs(coarse.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / coarse.size)


def test_coarse_inputs_draw_nothing_anew(echo):
    """With and without them the other inputs of a step are the same, so that variants of a study stay comparable."""
    without, with_it = (echo(diffusion__own_share=share)[0](7)[0].batch_stats for share in (0.0, 0.5))
    assert without["coarse_input"] is None
    for name in ("t", "noise"):
        np.testing.assert_array_equal(without[name], with_it[name])
