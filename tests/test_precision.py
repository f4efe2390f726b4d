"""bfloat16 computes where it may, float32 where it must; recomputing blocks and freezing statistics change no more."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.diffusion.process import Schedule
from dpose_jax.evaluation import precision
from dpose_jax.models import sgdd
from dpose_jax.models.hrnet import HRNet, HRNetSpec
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.models.summary import equations
from dpose_jax.training.optimizer import make_optimizer
from dpose_jax.training.state import initial_state
from dpose_jax.training.step import make_train_step

BATCH, JOINTS, SIZE = 2, 17, (64, 32)


@pytest.fixture(scope="module")
def trained_in_bfloat16(miniature, small_model):
    """Equations of a training step in bfloat16 with their scopes, and the shapes that it returns."""
    model, config = small_model(model__dtype="bfloat16"), miniature()
    optimizer = make_optimizer(config.optim, config.train)
    state = jax.eval_shape(lambda variables: initial_state(variables, optimizer), abstract_variables(model))
    batch = {
        "image": jnp.zeros((BATCH, *SIZE, 3), jnp.uint8),
        "keypoints": jnp.zeros((BATCH, JOINTS, 2)),
        "visible": jnp.ones((BATCH, JOINTS)),
        "annotation_id": jnp.zeros(BATCH, jnp.int32),
        "bad_index": jnp.full(BATCH, -1, jnp.int32),
    }
    step = make_train_step(config, model, Schedule(), optimizer)
    traced, returned = jax.make_jaxpr(step, return_shape=True)(state, batch, jax.random.key(0))
    return list(equations(traced.jaxpr)), state, returned


def dtypes(found, scope, *primitives):
    """Dtypes of the first operand of the given primitives in the forward pass where the scope holds `scope`."""
    return {
        equation.invars[0].aval.dtype.name
        for name, equation in found
        if scope in name and "transpose(" not in name and equation.primitive.name in primitives
    }


def test_state_and_metrics_are_float32(trained_in_bfloat16):
    _, before, (after, metrics) = trained_in_bfloat16
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, before)
    assert metrics.pop("bad_rows").dtype == np.int32
    assert {leaf.dtype.name for leaf in jax.tree.leaves((after.params, after.batch_stats, metrics))} == {"float32"}


def test_products_are_in_bfloat16(trained_in_bfloat16):
    found, *_ = trained_in_bfloat16
    for scope in ("hrnet", "attention", "merge", "decoder/down0", "decoder/up0"):
        assert dtypes(found, scope, "conv_general_dilated", "dot_general") == {"bfloat16"}, scope


def test_statistics_softmax_heads_and_loss_are_in_float32(trained_in_bfloat16):
    """Also the sums inside of LayerNorm and GroupNorm, and the peaks that feed the masks."""
    found, *_ = trained_in_bfloat16
    assert dtypes(found, "attention", "exp") == {"float32"}
    for scope in ("/bn", "norm_query", "norm_context", "decoder/down0_block0/norm1", "decoder/norm"):
        assert dtypes(found, scope, "reduce_sum", "rsqrt") == {"float32"}, scope
    for scope in ("coarse_head", "decoder/head"):
        assert dtypes(found, scope, "dot_general") == {"float32"}, scope
    # argmax and log are those of the decoded peaks; the squared error is outside of every scope of the model.
    assert dtypes(found, "", "argmax", "log") == {"float32"}
    outside = [(name, eqn) for name, eqn in found if "DiffusionPose" not in name and "hrnet" not in name]
    assert dtypes(outside, "", "integer_pow", "square", "reduce_sum") <= {"float32", "int32", "uint32", "bool"}


@pytest.fixture(scope="module")
def differentiate(random_tree):
    """A function from a module, inputs and static arguments to outputs and gradients of the sum of squares."""

    def run(module, inputs, **static):
        variables = random_tree(jax.eval_shape(lambda key: module.init(key, *inputs, **static), jax.random.key(0)))
        params, stats = variables["params"], {k: v for k, v in variables.items() if k != "params"}

        def total(params):
            out, updated = module.apply({"params": params} | stats, *inputs, **static, mutable=["batch_stats"])
            return jnp.sum(out**2), (out, updated)

        return jax.device_get(jax.jit(jax.grad(total, has_aux=True))(params))

    return run


@pytest.mark.parametrize("part", ["HRNet", "SGDD"])
def test_recomputed_blocks_have_the_same_gradients(differentiate, monkeypatch, part):
    rng = np.random.default_rng(0)
    if part == "HRNet":
        spec = HRNetSpec(4, modules=(1, 0, 0), blocks=1, stem=4, stem_blocks=1, stem_width=2)
        inputs, static = [rng.standard_normal((2, 32, 32, 3)).astype(np.float32)], {"train": True}
        modules = [HRNet(spec, remat=remat) for remat in (False, True)]
    else:
        monkeypatch.setattr(sgdd, "LEVELS", (1, 2))  # half the depth, which is most of the time to compile
        inputs, static = [rng.standard_normal((1, 5, 4, n)).astype(np.float32) for n in (3, 4)] + [np.array([7])], {}
        modules = [sgdd.SGDD(3, 4, 1, time_embedding=True, remat=remat) for remat in (False, True)]
    plain, remat = (differentiate(module, inputs, **static) for module in modules)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_frozen_batch_norm_is_that_of_evaluation(small_model, random_tree):
    """Running statistics, which stay. That scale and bias have no gradient is in tests/test_norms.py."""
    trained, frozen = small_model(), small_model(model__batch_norm="frozen")
    variables = random_tree(abstract_variables(trained))
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *SIZE, 3), np.uint8)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def encode(model, train):
        return model.apply(variables, images, train, method="encode", mutable=["batch_stats"])

    (features, coarse), updated = encode(frozen, True)
    (expected, heatmaps), _ = encode(trained, False)
    np.testing.assert_array_equal(features, expected)
    np.testing.assert_array_equal(coarse, heatmaps)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


def test_joints_of_the_two_dtypes_are_compared_person_by_person(miniature, monkeypatch):
    """Stand-ins for the two samplers: in bfloat16 the joints of each result are 5 px away, of the coarse one 1 px."""
    config = miniature()

    def joints_of(sampler, variables, crops, ids):
        away = np.array([3.0, 4.0]) * (sampler.model.dtype == jnp.bfloat16)
        joints = jnp.broadcast_to(ids[:, None, None] % 7 * 1.0, (len(ids), JOINTS, 2))
        scores = jnp.ones((len(ids), JOINTS))
        return {name: (joints + away / (5 if name == "coarse" else 1), scores) for name in sampler.names}

    monkeypatch.setattr(PoseSampler, "joints", joints_of)
    monkeypatch.setattr(precision, "restore", lambda config, workdir: types.SimpleNamespace(variables={}))
    found = precision.joint_distances(config, "nowhere")
    assert {name: distances.shape[1] for name, distances in found.items()} == dict.fromkeys(
        ("coarse", "steps_1", "steps_2"), JOINTS
    )
    # Rows that fill up the last batch are no persons.
    persons = {distances.shape[0] for distances in found.values()}
    assert len(persons) == 1 and persons.pop() % config.eval.batch_size
    np.testing.assert_allclose(found["coarse"], 1, rtol=1e-5)
    np.testing.assert_allclose(found["steps_2"], 5, rtol=1e-5)
    assert precision.format_distances(found).splitlines()[-1] == "| steps_2 | 5.000 | 5.000 | 5.000 | 5.000 | 100.00% |"
