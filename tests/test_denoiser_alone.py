"""Training the denoiser alone: HRNet and the coarse branch stay, and the step does not go back through them."""

import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.models.weights.hrnet_keys import to_official
from dpose_jax.runtime import flat, sharding
from dpose_jax.training.loop import prepare
from dpose_jax.training.optimizer import make_optimizer
from dpose_jax.training.state import evaluated_variables

KEPT = ("hrnet", "coarse_head")
HRNET = {"model__backbone": "miniature"}  # all of its branches


def compiled_step(recipe):
    run = prepare(recipe)
    batch = sharding.put_batch(run.next_batch(), run.mesh)
    run.data.close()
    return run, batch, run.phases[-1].step.lower(run.state, batch, run.key).compile()


def backward_operations(compiled):
    """The modules that the backward pass of a compiled step computes in, with their number of operations."""
    found = re.findall(
        r'op_name="[^"]*transpose\(jvp\(DiffusionPose[^"]*?/(hrnet|coarse_head|decoder)\b', compiled.as_text()
    )
    return {name: found.count(name) for name in sorted(set(found))}


@pytest.fixture(scope="module")
def pose_model(miniature, random_tree, tmp_path_factory):
    """A file of HRNet and head, in the official layout."""
    path = str(tmp_path_factory.mktemp("pose_model") / "pose_hrnet.safetensors")
    save_file(to_official(random_tree(abstract_variables(build_model(miniature(**HRNET))))), path)
    return path


@pytest.fixture(scope="module")
def denoiser_alone(miniature, pose_model):
    recipe = miniature(optim__backbone_rate=0.0, loss__coarse=0.0, model__pretrained=pose_model, **HRNET)
    return recipe, *compiled_step(recipe)


def test_the_step_has_no_backward_pass_through_hrnet_and_keeps_nothing_of_it(miniature, denoiser_alone):
    _, run, batch, alone = denoiser_alone
    whole = compiled_step(miniature(**HRNET))[2]
    assert backward_operations(whole).keys() == {"coarse_head", "decoder", "hrnet"}
    assert backward_operations(alone).keys() == {"decoder"}
    stored = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(run.state.opt_state)]
    assert any("decoder" in path for path in stored)
    assert not [path for path in stored if ".mu" in path and any(f"'{name}'" in path for name in KEPT)]
    assert alone.memory_analysis().temp_size_in_bytes < 0.7 * whole.memory_analysis().temp_size_in_bytes


def test_what_is_kept_stays_bit_for_bit_and_the_rest_learns(denoiser_alone):
    recipe, run, batch, _ = denoiser_alone
    start, state = jax.device_get(flat.unflatten(run.state)), run.state
    pose_model = {"params": start.params, "batch_stats": start.batch_stats}
    for name, array in load_file(recipe.model.pretrained).items():
        np.testing.assert_array_equal(to_official(pose_model)[name], array)
    assert recipe.optim.ema and recipe.optim.weight_decay  # both would move it
    for _ in range(3):
        state, metrics = run.train_step(1, state, batch)
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    state = flat.unflatten(state)
    averages = evaluated_variables(state, ema=True)
    for trees in (
        (start.params, state.params, averages["params"]),
        (start.batch_stats, state.batch_stats, averages["batch_stats"]),
    ):
        before, after, averaged = (flatten_dict(jax.device_get(tree), sep="/") for tree in trees)
        for path, array in before.items():
            kept = path.startswith(KEPT)
            assert np.array_equal(array, after[path]) == kept, path
            assert np.array_equal(array, averaged[path]) == kept, path


def test_a_rate_of_the_backbone_scales_its_updates_alone(miniature):
    params = {name: {"kernel": np.ones((3, 2), np.float32)} for name in ("hrnet", "decoder")}
    gradients = jax.tree.map(lambda x: 0.1 * x, params)

    def updates(rate):
        recipe = miniature(optim__backbone_rate=rate, optim__ema=0.0, optim__warmup_steps=0)
        optimizer = make_optimizer(recipe.optim, recipe.train)
        return optimizer.update(gradients, optimizer.init(params), params, batch_stats={})[0]

    full, slow = updates(1.0), updates(0.25)
    np.testing.assert_allclose(slow["hrnet"]["kernel"], 0.25 * full["hrnet"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(slow["decoder"]["kernel"], full["decoder"]["kernel"])


def test_what_cannot_be_kept_is_refused(miniature, pose_model, tmp_path):
    def refused(match, **overrides):
        with pytest.raises(ValueError, match=match):
            prepare(miniature(optim__backbone_rate=0.0, loss__coarse=0.0, **HRNET, **overrides))

    def other(name, tensors):
        save_file(tensors, tmp_path / name)
        return str(tmp_path / name)

    tensors = load_file(pose_model)
    refused("model.pretrained='none': with optim.backbone_rate=0 it must name trained weights")
    body = {name: array for name, array in tensors.items() if not name.startswith("final_layer")}
    refused("body.safetensors: an HRNet without a head", model__pretrained=other("body.safetensors", body))
    fewer = tensors | {name: tensors[name][:14] for name in ("final_layer.weight", "final_layer.bias")}
    refused(
        "its head has 14 joints, joint_set 'coco' has 17; .*loss.coarse=1",
        model__pretrained=other("14.safetensors", fewer),
    )
    larger = other("pose_384x288.safetensors", tensors)
    refused(r"a model of 384x288 crops, the recipe has input_size=\(64, 64\)", model__pretrained=larger)
