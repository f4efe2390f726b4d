"""The initial weights of a run, and its first steps with a frozen backbone."""

import contextlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from hrnet_weights import stored_weights
from safetensors.numpy import save_file

from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.initialise import initial_variables
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.runtime import flat, sharding
from dpose_jax.training.dry_run import dry_run
from dpose_jax.training.initial_weights import starting_variables
from dpose_jax.training.loop import prepare, train
from dpose_jax.training.optimizer import frozen_until
from dpose_jax.training.state import evaluated_variables
from dpose_jax.workdir import model_folder
from dpose_jax.workdir.checkpoints import Checkpoints, read_variables
from dpose_jax.workdir.compatibility import as_stored, stored_recipe
from dpose_jax.workdir.files import write_json


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def leaves_that_differ(one, other):
    paths = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: not np.array_equal(a, b), one, other))
    return {"/".join(str(key.key) for key in path) for path, differs in paths if differs}


@pytest.fixture
def small(miniature):
    """A function from overrides to a miniature config with the backbone of the stored weights."""
    return lambda **overrides: miniature(model__backbone="w18_small", **overrides)


def test_random_weights_are_said_to_be_random(miniature, small_model, capsys):
    model = small_model()
    for source in ("none", ""):
        assert_equal(
            starting_variables(miniature(model__pretrained=source, seed=3), model), initial_variables(model, 3)
        )
        assert capsys.readouterr().out == "start: random weights, seed 3\n"


def test_a_file_is_the_start_of_the_run(small, tmp_path, capsys):
    path = str(tmp_path / "hrnet.safetensors")
    save_file(stored_weights("w18_small", "imagenet"), path)
    state = flat.unflatten(prepare(small(model__pretrained=path)).state)
    np.testing.assert_array_equal(
        state.params["hrnet"]["stem1"]["conv"]["kernel"],
        stored_weights("w18_small", "imagenet")["conv1.weight"].transpose(2, 3, 1, 0),
    )
    variance = state.batch_stats["hrnet"]["stem1"]["bn"]["var"]
    np.testing.assert_array_equal(variance, stored_weights("w18_small", "imagenet")["bn1.running_var"])
    # The moving average starts there too.
    assert_equal(evaluated_variables(state, ema=True)["params"], state.params)
    said = capsys.readouterr().out
    assert f"start: 290 of 385 arrays from {path}; at random: attention, coarse_head, decoder, merge; ignored: " in said


def test_a_file_that_does_not_fit_is_named_with_its_field(miniature, small, tmp_path):
    path = str(tmp_path / "hrnet.safetensors")
    save_file(stored_weights("w18_small", "imagenet"), path)
    with pytest.raises(
        ValueError, match=rf"(?s)model\.pretrained='{path}': {path} does not fit the model:.*another shape"
    ):
        prepare(miniature(model__pretrained=path))


@pytest.mark.parametrize("run", [train, dry_run])
@pytest.mark.parametrize("source", ["imagenet", "absent.pth"])
def test_weights_that_are_not_there_stop_before_the_first_compile(run, source, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # whose cache may hold them
    monkeypatch.setattr("jax.jit", lambda *a, **k: pytest.fail("compiled before the check"))
    with pytest.raises(FileNotFoundError, match=rf"model\.pretrained='{source}': no.*hf:timm.*pretrained=none"):
        run(small(model__pretrained=source), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_takes_its_checkpoint(trained, miniature, tmp_path, capsys):
    """And does not look for the weights that it once started from."""
    workdir = str(tmp_path / "run")
    shutil.copytree(trained[1], workdir)
    train(miniature(model__pretrained="gone.pth"), workdir)
    said = capsys.readouterr().out
    assert "resuming at step 4 of 4" in said and "start:" not in said


@pytest.fixture(scope="module")
def averages(trained):
    """What the checkpoint of `trained` gives, flat."""
    found = read_variables(trained[1])
    assert found.step == 4 and found.averaged
    return flatten_dict(found.variables, sep="/")


def test_a_run_starts_from_another_run(trained, averages, miniature, capsys):
    """From its moving average, as evaluation does."""
    state = flat.unflatten(prepare(miniature(model__pretrained=trained[1])).state)
    started = flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
    assert_equal(started, averages)
    last = restored(*trained)
    assert leaves_that_differ(state.params, last.params)
    assert_equal(state.params, evaluated_variables(last, ema=True)["params"])
    count = len(averages)
    assert f"start: {count} of {count} arrays from {trained[1]} (step 4)\n" in capsys.readouterr().out


def test_without_evaluated_averages_there_are_the_newest_values(trained, tmp_path):
    """As `eval.py` does with `eval.ema=False`."""
    workdir = tmp_path / "run"
    shutil.copytree(trained[1], workdir)
    stored = stored_recipe(str(workdir)).override({"eval.ema": False})
    write_json(str(workdir / "config.json"), as_stored(stored))
    assert_equal(read_variables(str(workdir)).variables["params"], restored(*trained).params)


def test_a_run_starts_from_a_model_folder(trained, averages, miniature, tmp_path, capsys):
    found = read_variables(trained[1])
    model_folder.save(str(tmp_path), found.variables, stored_recipe(trained[1]), step=found.step)
    config = miniature(model__pretrained=str(tmp_path))
    assert_equal(flatten_dict(starting_variables(config, build_model(config)), sep="/"), averages)
    assert f"arrays from {tmp_path} (step 4)\n" in capsys.readouterr().out


def test_other_joints_get_new_heads(trained, averages, miniature, tmp_path):
    """COCO's joints in another order are other joints, though nothing has another shape."""
    joints = str(tmp_path / "joints.json")
    facts = {"joints": COCO.joints[::-1], "limbs": [[0, 1]], "flip_pairs": [], "sigmas": [0.1] * 17}
    write_json(joints, facts)
    config = miniature(model__pretrained=trained[1], joint_set=joints)
    model = build_model(config)
    filled, fresh = starting_variables(config, model), initial_variables(model, config.seed)
    filled, fresh = (flatten_dict(tree, sep="/") for tree in (filled, fresh))
    heads = ("params/coarse_head/", "params/decoder/head/", "params/decoder/stem/")
    for path, array in filled.items():
        np.testing.assert_array_equal(array, (fresh if path.startswith(heads) else averages)[path])


def test_a_frozen_part_starts_late():
    """Frozen parameters get what an optimizer gives that first sees them afterwards; the others never notice."""
    rng = np.random.default_rng(0)
    params = {name: {"kernel": jnp.asarray(rng.standard_normal((3, 2)), jnp.float32)} for name in ("hrnet", "decoder")}
    inner = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1))
    held, late, plain = frozen_until(3, "hrnet", inner), inner, inner
    state, plain_state = held.init(params), plain.init(params["decoder"])
    late_state = late.init(params["hrnet"])
    for step in range(8):
        gradients = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), params)
        updates, state = held.update(gradients, state, params)
        expected, plain_state = plain.update(gradients["decoder"], plain_state, params["decoder"])
        np.testing.assert_allclose(updates["decoder"]["kernel"], expected["kernel"], rtol=1e-6)
        if step < 3:
            np.testing.assert_array_equal(updates["hrnet"]["kernel"], 0)
        else:
            expected, late_state = late.update(gradients["hrnet"], late_state, params["hrnet"])
            np.testing.assert_allclose(updates["hrnet"]["kernel"], expected["kernel"], rtol=1e-6)


def test_steps_draw_by_the_seed_of_the_config(miniature):
    run = prepare(miniature(seed=3))
    run.data.close()
    assert run.key == jax.random.key(3)


def test_the_backbone_is_frozen_for_the_first_steps(miniature):
    """Parameters, BatchNorm statistics and Adam's moments of HRNet, through the compiled step; all else learns."""
    run = prepare(miniature(model__backbone="miniature", optim__freeze_backbone_steps=2))
    assert [(phase.name, phase.last) for phase in run.phases] == [("frozen backbone", 2), ("all", 4)]
    start, state = jax.device_get(flat.unflatten(run.state)), run.state
    for number in (1, 2):
        state, metrics = run.train_step(number, state, sharding.put_batch(run.next_batch(), run.mesh))
    run.data.close()
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    state = flat.unflatten(state)
    assert_equal(state.batch_stats, start.batch_stats)
    others = {path for path in flatten_dict(start.params, sep="/") if not path.startswith("hrnet/")}
    assert leaves_that_differ(start.params, state.params) == others
    moments = [leaf for path, leaf in adam_leaves(state) if "'hrnet'" in path]
    assert len(moments) == 2 * len(jax.tree.leaves(start.params["hrnet"])) and not any(leaf.any() for leaf in moments)


def restored(config, workdir):
    with contextlib.closing(Checkpoints(str(workdir), keep=2)) as checkpoints:
        return jax.device_get(flat.unflatten(checkpoints.restore(prepare(config, resumes=True).state)))


def adam_leaves(state):
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
    return [(path, leaf) for path, leaf in named if ".mu" in path or ".nu" in path]
