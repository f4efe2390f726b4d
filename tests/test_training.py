import contextlib
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging

from dpose_jax.data.coco_format import MALFORMED
from dpose_jax.data.loader import BadRecords
from dpose_jax.data.sample import Person
from dpose_jax.models.initialise import initial_variables
from dpose_jax.runtime import multihost
from dpose_jax.training import initial_weights, loop
from dpose_jax.training.metrics import DivergedError, MetricsWriter, StepLog
from dpose_jax.training.optimizer import average_variables, learning_rate, make_optimizer
from dpose_jax.training.profiling import Trace
from dpose_jax.training.state import TrainState, evaluated_variables, initial_state
from dpose_jax.workdir.checkpoints import Checkpoints, check_workdir, claim_workdir
from dpose_jax.workdir.starts import record_start, training_device


def read_metrics(workdir):
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def test_moving_averages_are_their_recursion():
    """a_n = d_n a_(n-1) + (1 - d_n) x_n with d_n = min(decay, n / (9 + n)) for the n-th update, from x_0.

    The same for parameters and for BatchNorm's statistics, and evaluation takes both or neither.
    """
    rng = np.random.default_rng(0)
    params, stats = ({name: rng.standard_normal(3).astype(np.float32)} for name in ("w", "mean"))
    optimizer = optax.chain(optax.sgd(1.0), average_variables(0.6))
    state = initial_state({"params": params, "batch_stats": stats}, optimizer).opt_state
    expected = [params["w"].astype(np.float64), stats["mean"].astype(np.float64)]
    for n in range(1, 30):
        gradients, stats = ({name: rng.standard_normal(3).astype(np.float32)} for name in ("w", "mean"))
        updates, state = optimizer.update(gradients, state, params, batch_stats=stats)
        np.testing.assert_array_equal(updates["w"], -gradients["w"])
        params = optax.apply_updates(params, updates)
        decay = min(0.6, n / (9 + n))
        newest = params["w"], stats["mean"]
        expected = [decay * e + (1 - decay) * np.asarray(x) for e, x in zip(expected, newest, strict=True)]
        variables = evaluated_variables(TrainState(n, params, stats, state), ema=True)
        np.testing.assert_allclose(variables["params"]["w"], expected[0], atol=1e-5)
        np.testing.assert_allclose(variables["batch_stats"]["mean"], expected[1], atol=1e-5)
    plain = {"params": params, "batch_stats": stats}
    assert evaluated_variables(TrainState(n, params, stats, state), ema=False) == plain
    without = TrainState(0, params, stats, optax.chain(optax.sgd(1.0)).init(params))
    assert evaluated_variables(without, ema=True) == plain


@pytest.fixture
def rates(miniature):
    """A function from overrides to the learning rate by step."""

    def build(**overrides):
        recipe = miniature(**overrides)
        return learning_rate(recipe.optim, recipe.train)

    return build


def test_cosine_schedule(rates):
    rate = rates(optim__schedule="cosine", optim__learning_rate=0.02, optim__warmup_steps=10, train__steps=110)
    steps = np.arange(111)
    cosine = 0.02 * (1 + np.cos(np.pi * (steps - 10) / 100)) / 2
    expected = np.where(steps < 10, 0.02 * steps / 10, cosine)
    np.testing.assert_allclose([rate(step) for step in steps], expected, atol=1e-8)


def test_rate_is_linear_in_the_batch(rates):
    fields = {"optim__learning_rate": 0.01, "optim__warmup_steps": 0, "train__batch_size": 64}
    for base, expected in ((0, 0.01), (64, 0.01), (128, 0.005), (16, 0.04)):
        assert rates(**fields, optim__base_batch=base)(0) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 10])
def test_step_schedule(rates, warmup):
    """A tenth from each share of the run on, whatever the warm-up."""
    fields = {"optim__schedule": "step", "optim__learning_rate": 1.0, "optim__decay_at": (0.5, 0.8)}
    rate = rates(**fields, optim__warmup_steps=warmup, train__steps=100)
    for step, value in [(warmup, 1.0), (49, 1.0), (50, 0.1), (79, 0.1), (80, 0.01), (99, 0.01)]:
        assert float(rate(step)) == pytest.approx(value, rel=1e-5), step
    if warmup:
        assert [float(rate(step)) for step in (0, 5)] == pytest.approx([0.0, 0.5])


def test_optimizer_clips_and_decays_kernels_alone(miniature):
    fields = {
        "optim__warmup_steps": 0,
        "optim__learning_rate": 0.1,
        "optim__weight_decay": 0.5,
        "optim__clip_norm": 1.0,
    }
    recipe = miniature(**fields)
    optimizer = make_optimizer(recipe.optim, recipe.train)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params, batch_stats={})
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 3, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)
    gradients = {"kernel": jnp.zeros((2, 2)), "bias": jnp.array([30.0, 40.0])}
    _, state = optimizer.update(gradients, state, params, batch_stats={})
    moments = next(part for part in state if isinstance(part, optax.ScaleByAdamState))
    np.testing.assert_allclose(moments.mu["bias"], [0.1 * 0.6, 0.1 * 0.8], rtol=1e-5)


class People:
    """Persons without pixels, and one malformed annotation that was left out."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return Person(100 + index, index, f"{index}.jpg", np.ones(4), np.zeros((17, 3)))

    def report(self):
        return {"records": 11, "kept": 10, MALFORMED[0]: 1}


@pytest.fixture
def log(miniature, tmp_path):
    recipe = miniature(train__steps=6, train__log_every=2)
    with contextlib.closing(MetricsWriter(str(tmp_path), 0)) as writer:
        yield StepLog(recipe.data, recipe.train, People(), 0, writer)


def figures(**changes):
    values = {"loss": 3.0, "loss_diffusion": 1.0, "loss_coarse": 2.0, "grad_norm": 4.0, "learning_rate": 0.5} | changes
    return {"bad_rows": jnp.int32(0)} | {name: jnp.float32(value) for name, value in values.items()}


def rows(*ids, bad_index=-1):
    return {"annotation_id": np.array(ids, np.int32), "bad_index": np.full(len(ids), bad_index, np.int32)}


def test_log_reads_one_step_late(log, tmp_path):
    for step in range(1, 5):
        log.push(step, figures(loss=step), rows(5))
        assert [line["step"] for line in read_metrics(tmp_path)] == [s for s in (2, 4) if s < step]
    log.flush()
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        expected = {"loss": line["step"], "loss_diffusion": 1, "loss_coarse": 2, "grad_norm": 4, "bad_records": 1}
        assert {name: line[name] for name in expected} == expected and line["examples_per_second"] > 0


def test_hosts_exchange_what_is_unreadable_only_when_something_is(log, monkeypatch):
    exchanged = []

    def gather(found):
        exchanged.append(found.tolist())
        return np.concatenate([found, [7]])

    monkeypatch.setattr(multihost, "gather", gather)
    log.push(1, figures(), rows(5, 6))
    log.push(2, figures(bad_rows=2), rows(5, 6, bad_index=3))
    assert not exchanged
    with pytest.raises(ValueError, match=r"1 of 11 records are malformed and 2 unreadable, .*data\.max_bad_share=0.01"):
        log.flush()
    assert exchanged == [[3, 3]]


@pytest.mark.parametrize("name", ["loss_diffusion", "loss_coarse", "loss", "grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_figure_that_is_not_finite_stops_the_run(log, name, value):
    log.push(1, figures(), rows(5, 6))
    log.push(2, figures(**{name: value}), rows(7, 8))
    with pytest.raises(DivergedError, match=rf"step 2: {name} is {value}; annotation ids \[7, 8\]"):
        log.push(3, figures(), rows(9, 10))


def test_diverged_run_saves_nothing(miniature, tmp_path, monkeypatch, trained):
    """A real NaN, through the compiled step; `trained` has compiled it."""

    def poisoned(*arguments):
        variables = initial_variables(*arguments)
        variables["params"]["decoder"]["head"]["bias"][3] = np.nan
        return variables

    monkeypatch.setattr(initial_weights, "initial_variables", poisoned)
    with pytest.raises(DivergedError, match=r"step 1: loss_diffusion is nan; annotation ids \[\d+(, \d+){7}\]"):
        loop.train(miniature(), str(tmp_path))
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.latest is None
    checkpoints.close()


def test_metrics_after_the_resumed_step_and_cut_lines_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "loss": 2.0}\n{"step": 30, "loss": 3.0}\n{"step": 40, "lo')
    writer = MetricsWriter(str(tmp_path), 20)
    writer.write(30, {"loss": 4.0})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 4.0}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_bad_records_are_named_once_counted_and_limited(monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: warnings.append(message % values))
    bad = BadRecords(People(), max_share=0.3)
    bad.add(np.array([-1, 3, -1, 3]))
    bad.add(np.array([3, 7, -1]))
    assert len(bad) == 3
    assert warnings == [f"unreadable record left out: {i}.jpg (id {100 + i})" for i in (3, 7)]
    with pytest.raises(
        ValueError, match=r"1 of 11 records are malformed and 3 unreadable, .* data\.max_bad_share=0\.3; .*\.jpg"
    ):
        bad.add(np.array([1]))


def test_a_workdir_keeps_its_model(miniature, tmp_path):
    workdir = str(tmp_path / "new")
    claim_workdir(miniature(stride=8), workdir)
    # Without a checkpoint there is no model yet.
    claim_workdir(miniature(), workdir)
    (tmp_path / "new" / "checkpoints" / "4").mkdir(parents=True)
    # What changes no parameter may change; the stored config follows.
    claim_workdir(miniature(train__steps=9, model__dtype="bfloat16", model__detach_coarse=True), workdir)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["train"]["steps"] == 9
    other = miniature(
        model__width=16, model__decoder_blocks=2, stride=2, diffusion__zeta=1.0, masks__skeleton=False, codec__sigma=3.0
    )
    for check in (claim_workdir, check_workdir):
        with pytest.raises(ValueError, match="holds the checkpoint of another model") as caught:
            check(other, workdir)
        lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
        assert lines == [
            "codec.sigma: 2.0 there, 3.0 in the config",
            "diffusion.zeta: 2.0 there, 1.0 in the config",
            "masks.skeleton: True there, False in the config",
            "model.decoder_blocks: 1 there, 2 in the config",
            "model.width: 8 there, 16 in the config",
            "stride: 4 there, 2 in the config",
        ]
    assert json.loads((tmp_path / "new" / "config.json").read_text())["stride"] == 4
    # An evaluation draws nothing from the seed, a run that goes on would draw other data.
    check_workdir(miniature(seed=7), workdir)
    with pytest.raises(ValueError, match="seed: 0 there, 7 in the config"):
        claim_workdir(miniature(seed=7), workdir)


def test_checkpoint_brings_back_state_and_data_position(trained, tmp_path):
    recipe, workdir = trained
    run = loop.prepare(recipe)
    checkpoints = Checkpoints(workdir, keep=2)
    assert checkpoints.latest == 4
    state = checkpoints.restore(run.state, run.data)
    checkpoints.close()
    assert run.data.get_state() == {"examples": 4 * 8}
    assert int(state.step) == 4

    again = Checkpoints(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        again.restore(run.state)
    again.save(3, state, run.data)
    expected = run.next_batch()
    again.save(4, state, run.data)
    again.close()
    again = Checkpoints(str(tmp_path), keep=1)
    other = loop.prepare(recipe)
    restored = again.restore(other.state, other.data)
    assert again.latest == 4 and sorted(os.listdir(tmp_path / "checkpoints")) == ["4"]
    again.close()
    for one, copy in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(one, copy)
    after = run.next_batch()
    np.testing.assert_array_equal(other.next_batch()["image"], after["image"])
    assert (after["image"] != expected["image"]).any()
    run.data.close(), other.data.close()


def test_another_optimizer_in_the_workdir_is_named(trained, miniature, tmp_path):
    """Its state has other parts, so it could not be restored."""
    workdir = str(tmp_path / "copy")
    shutil.copytree(trained[1], workdir)
    for name, value in [("ema", 0.0), ("clip_norm", 0.0), ("weight_decay", 0.0)]:
        with pytest.raises(ValueError, match=rf"optim\.{name}: on there, off in the config"):
            loop.train(miniature(**{f"optim__{name}": value}), workdir)


def test_every_start_records_its_devices_and_versions(tmp_path, monkeypatch):
    workdir = str(tmp_path)
    assert training_device(workdir) is None
    record_start(workdir, 0)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    for step in (2, 4):
        record_start(workdir, step)
    assert training_device(workdir) == training_device(workdir, 3) == "cpu and 8 x cpu"
    assert training_device(workdir, 2) == "cpu"  # what saved nothing trained nothing
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 2, 4] and starts[0]["jax"] == jax.__version__
    assert {"device", "devices", "processes", "dpose_jax"} < set(starts[0])


def test_a_finished_run_does_nothing_more(trained, capsys):
    recipe, workdir = trained
    before, starts = read_metrics(workdir), training_device(workdir)
    loop.train(recipe, workdir)
    assert read_metrics(workdir) == before and training_device(workdir) == starts == "cpu"
    assert "resuming at step 4 of 4" in capsys.readouterr().out


def test_initial_state_is_a_copy(miniature):
    """The first donated step must not destroy the average, which starts as the parameters."""
    params = {"kernel": np.ones((2, 2), np.float32)}
    recipe = miniature()
    state = initial_state({"params": params, "batch_stats": {}}, make_optimizer(recipe.optim, recipe.train))
    average = evaluated_variables(state, ema=True)["params"]["kernel"]
    assert average.unsafe_buffer_pointer() != state.params["kernel"].unsafe_buffer_pointer()


def test_the_profile_holds_the_steps_after_the_warm_up(tmp_path, monkeypatch):
    traced = []

    @contextlib.contextmanager
    def trace(folder):
        traced.append(folder)
        yield
        traced.append("end")

    monkeypatch.setattr(jax.profiler, "trace", trace)
    for count, steps, expected in ((0, 9, []), (2, 9, [5, "end"]), (2, 5, [5, "end"])):
        traced.clear()
        with Trace(count, 2, "folder") as profile:
            for step in range(3, steps + 1):
                profile.after(step, jnp.ones(3))
                traced[:] = [step if each == "folder" else each for each in traced]
            assert traced == (expected if steps == 9 else expected[:1])
        assert traced == expected
