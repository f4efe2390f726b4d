"""Programs that are kept traced: the same results, and others when the code or its inputs change."""

import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import resource
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.diffusion.sampler import UPDATES
from dpose_jax.inference.predictor import Predictor
from dpose_jax.models.backbones import BACKBONES, hrnet_backbone
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.initialise import abstract_variables, initial_variables
from dpose_jax.runtime import flat, sharding
from dpose_jax.training import initial_weights, loop
from dpose_jax.workdir import model_folder, once, stored_program
from dpose_jax.workdir.once import KEPT_DAYS
from dpose_jax.workdir.stored_program import StoredProgram


@pytest.fixture(name="folder")
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(once, "programs_folder", lambda: once.epath.Path(tmp_path))
    monkeypatch.setattr(stored_program, "programs_folder", lambda: once.epath.Path(tmp_path))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    return tmp_path


def files(folder, kind):
    return sorted(folder.glob(f"{kind}-*"))


def from_elsewhere(monkeypatch):
    """The tests' network becomes one that the code of this package does not build."""
    build = BACKBONES["speck"].build
    other = dataclasses.replace(BACKBONES["speck"], build=lambda *arguments: build(*arguments))
    monkeypatch.setitem(BACKBONES, "speck", other)


def other_blocks(monkeypatch):
    spec = dataclasses.replace(BACKBONES["speck"].spec, stem_blocks=2)
    monkeypatch.setitem(BACKBONES, "speck", hrnet_backbone(spec))


def counted(calls):
    def function(weights, x):
        calls.append(1)
        return {"y": jnp.sin(x) @ weights["w"] + np.float32(0.5)}

    return function


def test_a_stored_program_is_not_traced_again_and_gives_the_same(folder):
    calls, rng = [], np.random.default_rng(0)
    weights = jax.device_put({"w": rng.normal(size=(5, 3)).astype(np.float32)})
    x = rng.normal(size=(4, 5)).astype(np.float32)
    expected = jax.jit(counted([]))(weights, x)["y"]
    for _ in range(3):
        np.testing.assert_array_equal(StoredProgram(counted(calls), "a")(weights, x)["y"], expected)
        assert len(calls) == 1 and len(files(folder, "program")) == len(files(folder, "compiled")) == 1
    one = StoredProgram(counted(calls), "b")
    for _ in range(2):
        one(weights, x)
    assert len(calls) == 2 and one.eval_shape(weights, x)["y"].shape == (4, 3)
    one(weights, x[:2])
    # The second is the first's text, which is not compiled again.
    assert len(files(folder, "program")) == 3 and len(files(folder, "compiled")) == 2


def test_programs_are_loaded_before_their_arguments_are_known(folder, monkeypatch):
    calls, weights = [], {"w": np.ones((5, 3), np.float32)}
    inputs = [np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32) for rows in (2, 3)]
    expected = [StoredProgram(counted(calls))(weights, x)["y"] for x in inputs]
    one = StoredProgram(counted(calls))
    one.start_loading()
    monkeypatch.setattr(stored_program, "_load", None)  # What is loaded is not loaded again.
    for x, its in zip(inputs, expected, strict=True):
        needs = one.lower(weights, jax.ShapeDtypeStruct(x.shape, x.dtype)).compile().memory_analysis()
        assert needs.output_size_in_bytes == its.nbytes
        np.testing.assert_array_equal(one(weights, x)["y"], its)
    assert len(calls) == 2
    monkeypatch.undo()
    other = StoredProgram(counted(calls), "other")
    other.start_loading()
    np.testing.assert_array_equal(other(weights, inputs[0])["y"], expected[0])
    assert len(calls) == 3


def test_a_damaged_program_is_compiled_anew(folder):
    calls, x = [], np.ones((2, 5), np.float32)
    weights = {"w": np.ones((5, 3), np.float32)}
    expected = StoredProgram(counted(calls))(weights, x)["y"]
    for kind, traced in (("compiled", 1), ("program", 1)):
        (file,) = files(folder, kind)
        whole = file.read_bytes()
        for broken in (b"", whole[:-9], b"\x80\x04N."):
            for starts in (False, True):
                file.write_bytes(broken)
                calls.clear()
                one = StoredProgram(counted(calls))
                if starts:
                    one.start_loading()
                np.testing.assert_array_equal(one(weights, x)["y"], expected)
                assert len(calls) == traced and file.read_bytes() != broken
    assert len(list(folder.iterdir())) == 2


def test_programs_that_differ_in_a_constant_are_two(folder):
    """A long one too, of which a text may show the ends alone."""
    x, calls = np.ones(5000, np.float32), []
    for name, changed in (("a", 2.0), ("b", 3.0), ("a", 2.0)):
        constant = np.arange(5000, dtype=np.float32)
        constant[2500] = changed

        def scaled(x, constant=constant):
            calls.append(1)
            return x * constant

        np.testing.assert_array_equal(StoredProgram(scaled, name)(x), constant)
    assert len(calls) == len(files(folder, "compiled")) == 2


@pytest.mark.parametrize("error", [OSError("full"), ValueError("Compilation does not support serialization")])
def test_a_program_that_cannot_be_stored_runs(folder, error, monkeypatch):
    calls, x, weights = [], np.ones((2, 5), np.float32), {"w": np.ones((5, 3), np.float32)}

    def fail(program):
        raise error

    monkeypatch.setattr(stored_program, "_store", fail)
    for count in (1, 2):
        expected = jax.jit(counted([]))(weights, x)["y"]
        np.testing.assert_array_equal(StoredProgram(counted(calls))(weights, x)["y"], expected)
        assert len(calls) == count and not files(folder, "compiled")


def test_a_program_that_nothing_reads_goes(folder):
    x, weights = np.ones((2, 5), np.float32), {"w": np.ones((5, 3), np.float32)}
    for name in "ab":
        StoredProgram(counted([]), name)(weights, x)
    (first, _), month = files(folder, "program"), time.time() - (KEPT_DAYS + 1) * 24 * 3600
    for path in folder.iterdir():
        os.utime(path, (month, month))
    calls = []
    for name in "abc":  # those that are read stay, though the third is stored after them
        StoredProgram(counted(calls), name)(weights, x)
    assert len(calls) == 1 and len(files(folder, "program")) == 3 and first.exists()
    os.utime(first, (month, month))
    StoredProgram(counted(calls), "d")(weights, x)
    assert len(calls) == 2 and len(files(folder, "program")) == 3 and not first.exists()
    assert len(files(folder, "compiled")) == 1


def test_other_code_and_other_settings_have_their_own(folder, monkeypatch):
    calls, x, weights = [], np.ones((2, 5), np.float32), {"w": np.ones((5, 3), np.float32)}
    StoredProgram(counted(calls))(weights, x)
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        StoredProgram(counted(calls))(weights, x)
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    one = StoredProgram(counted(calls))
    one(weights, x)
    assert len(calls) == 2
    with jax.default_matmul_precision("high"):  # of the same object
        one(weights, x)
    monkeypatch.setattr(once, "code", lambda: "other")
    StoredProgram(counted(calls))(weights, x)
    assert len(calls) == len(files(folder, "program")) == 4 and len(files(folder, "compiled")) == 3


def test_a_training_that_starts_again_does_not_trace_its_step(folder, miniature, monkeypatch):
    """It takes the same step; another recipe has its own program, and a part from elsewhere is not stored."""
    traced, make = [], loop.make_gradients

    def counted_gradients(*arguments, **options):
        gradients = make(*arguments, **options)
        return lambda *inputs: traced.append(1) or gradients(*inputs)

    def first_step(recipe):
        run = loop.prepare(recipe)
        batch = sharding.put_batch(run.next_batch(), run.mesh)
        run.data.close()
        needs = run.phases[-1].step.lower(run.state, batch, run.key).compile().memory_analysis()
        state, metrics = run.train_step(1, run.state, batch)
        assert needs.temp_size_in_bytes > 0
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(run.state) if leaf.size > 1), "freed"
        assert jax.tree.structure(state) == jax.tree.structure(run.state)
        return jax.device_get((flat.unflatten(state), metrics))

    monkeypatch.setattr(loop, "make_gradients", counted_gradients)
    plain = {"loss.diffusion": 0.0}  # the least to compile
    found = [first_step(miniature().override(plain)) for _ in range(2)]
    assert len(traced) == 1
    jax.tree.map(np.testing.assert_array_equal, *found)
    first_step(miniature().override(plain | {"optim.learning_rate": 0.5}))
    assert len(traced) == 2
    from_elsewhere(monkeypatch)
    # Statistics of a part from elsewhere are averaged one by one, in another program.
    within = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-9)
    jax.tree.map(within, first_step(miniature().override(plain)), found[0])
    # Of each recipe, the gradients and the update.
    assert len(traced) == 3 and len(files(folder, "program")) == 4


def test_shapes_of_a_model_are_found_out_once(folder, miniature, monkeypatch):
    """Random weights are the same by shapes that are kept, read anew, damaged, or not kept."""
    recipe = miniature(model__pretrained="none", seed=3)
    model, traced = build_model(recipe), []

    def shapes(model):
        traced.append(1)
        return abstract_variables(model)

    expected = initial_variables(model, 3)
    monkeypatch.setattr(initial_weights, "abstract_variables", shapes)
    found = [initial_weights.random_variables(recipe, model) for _ in range(2)]
    assert len(traced) == 1
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    found += [initial_weights.random_variables(recipe, model) for _ in range(2)]
    assert len(traced) == 2
    wider = recipe.override({"model.decoder_channels": 16})
    others = initial_weights.random_variables(wider, build_model(wider))
    assert len(traced) == 3 and jax.tree.map(np.shape, others) != jax.tree.map(np.shape, expected)
    other_blocks(monkeypatch)
    others = initial_weights.random_variables(recipe, build_model(recipe))
    assert len(traced) == 4 and len(jax.tree.leaves(others)) > len(jax.tree.leaves(expected)), "of the same name"
    from_elsewhere(monkeypatch)
    others = [others, initial_weights.random_variables(recipe, build_model(recipe))]
    jax.tree.map(np.testing.assert_array_equal, *others)
    assert len(traced) == 4 and len(list(folder.iterdir())) == 3
    for one in found:
        jax.tree.map(np.testing.assert_array_equal, one, expected)


def test_a_check_is_made_once(folder):
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        once.check_once(check, "a")
    for inputs in (["a"], ["a"], ["b"], ["b"]):
        once.check_once(check, *inputs)
    assert len(calls) == 3 and len(list(folder.iterdir())) == 2
    once.check_once(check, "a", None)
    assert len(calls) == 4 and len(list(folder.iterdir())) == 2


def test_a_folder_with_files_of_others_keeps_new_ones(folder, monkeypatch):
    """Another's old file cannot be deleted, one that a kill cut short can."""
    month = time.time() - (KEPT_DAYS + 1) * 24 * 3600
    others, cut = folder / "checked-others", folder / ".compiled-cut"
    for path in (others, cut):
        path.write_bytes(b"")
        os.utime(path, (month, month))
    unlink = pathlib.Path.unlink

    def refuse(path, *options):
        if path.name == others.name:
            raise PermissionError(path)
        unlink(path, *options)

    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    monkeypatch.setattr(type(once.epath.Path(folder)), "unlink", refuse)
    once.check_once(lambda: None, "a")
    assert len(files(folder, "checked")) == 2 and others.exists() and not cut.exists()


def test_a_full_disk_keeps_no_part(folder):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        assert once.kept("checked-a", lambda: 7, lambda _: bytes(9000), len) == 7
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(folder.iterdir())


def test_a_bucket_that_has_no_client_is_no_error(monkeypatch):
    """What its clients raise is of no known type."""

    class Bucket:
        def __truediv__(self, name):
            return self

        def __getattr__(self, name):
            raise ImportError("gcsfs")

    for module in (once, stored_program):
        monkeypatch.setattr(module, "programs_folder", Bucket)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert once.kept("checked-a", lambda: 7, bytes, len) == 7
    x, weights = np.ones((2, 5), np.float32), {"w": np.ones((5, 3), np.float32)}
    one = StoredProgram(counted([]))
    one.start_loading()
    np.testing.assert_array_equal(one(weights, x)["y"], jax.jit(counted([]))(weights, x)["y"])


def test_another_optax_has_its_own(monkeypatch):
    def found():
        once.code.cache_clear()
        return once.code()

    before = found()
    monkeypatch.setattr(once, "version", lambda name: "9" if name == "optax" else importlib.metadata.version(name))
    changed = found()
    monkeypatch.undo()
    assert changed != before == found()


def test_parts_from_elsewhere_are_not_stored(folder, monkeypatch):
    """The code of this package finds a stored program. An update rule of the user's is not part of it."""
    recipe, variables, _ = model_folder.load(model_folder.SHIPPED)
    assert Predictor(recipe, variables)._run._folder() == folder
    rule = UPDATES["direct"]
    with monkeypatch.context() as patch:
        patch.setitem(UPDATES, "direct", rule._replace(update=lambda space, y, estimate, step: y))
        assert Predictor(recipe, variables)._run._folder() is None
    assert Predictor(recipe, variables)._run._folder() == folder
    tiny = BACKBONES["tiny"]
    monkeypatch.setitem(BACKBONES, "tiny", dataclasses.replace(tiny, build=lambda *arguments: tiny.build(*arguments)))
    assert Predictor(recipe, variables)._run._folder() is None
