import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import epath_bucket
import jax
import numpy as np
import pytest

from dpose_jax.evaluation.evaluator import evaluate
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.runtime import flat
from dpose_jax.training import board, loop
from dpose_jax.training.metrics import MetricsWriter
from dpose_jax.training.preemption import PREEMPTED_STATUS
from dpose_jax.workdir import checkpoints as checkpoints_module
from dpose_jax.workdir import files
from dpose_jax.workdir.checkpoints import (
    Checkpoints,
    check_workdir,
    claim_workdir,
    holds_checkpoint,
    read_variables,
)
from dpose_jax.workdir.compatibility import stored_recipe
from dpose_jax.workdir.starts import record_start, training_device

ROOT = pathlib.Path(__file__).parents[1]

# The run of the config, which sends itself a signal while it handles the figures of a step.
STRUCK = """
import os, sys
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app
from dpose_jax.training import board, loop
from dpose_jax.training.metrics import StepLog
from tests import miniature

workdir, struck, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
push = StepLog.push

def strike(self, step, metrics, batch):
    push(self, step, metrics, batch)
    if step == struck:
        os.kill(os.getpid(), number)

StepLog.push = strike
sys.argv[1:] = []
app.run(lambda: loop.train(Recipe.from_config(miniature.get_config()), workdir))
"""


class Position:
    """Stands in for the data: a position and nothing else."""

    def __init__(self, examples=0):
        self.examples = examples

    def get_state(self):
        return {"examples": self.examples}

    def set_state(self, state):
        self.examples = state["examples"]


def lines(workdir):
    """The log without what depends on the clock."""
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k != "examples_per_second"} for line in text.splitlines()]


def steps(workdir):
    return sorted(int(name) for name in os.listdir(pathlib.Path(workdir) / "checkpoints") if name.isdigit())


def struck(workdir, step, number):
    command = [sys.executable, "-c", STRUCK, str(workdir), str(step), str(int(number))]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True)


def test_a_run_that_was_stopped_and_killed_ends_as_one_that_was_not(trained, tmp_path):
    """SIGTERM at step 1 saves it; SIGKILL at step 3 falls back to 2; the rest: bit for bit the four steps at once.

    Parameters, statistics, moments, averages, data position and log.
    """
    config, straight = trained
    stopped = struck(tmp_path, 1, signal.SIGTERM)
    assert stopped.returncode == PREEMPTED_STATUS == 75, stopped.stderr
    assert "SIGTERM: step 1 is saved" in stopped.stderr and "Traceback" not in stopped.stderr
    assert steps(tmp_path) == [1]
    killed = struck(tmp_path, 3, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL and "resuming at step 1 of 4" in killed.stdout, killed.stderr
    assert steps(tmp_path) == [1, 2]
    loop.train(config, str(tmp_path))

    run = loop.prepare(config)
    states = []
    for workdir in (straight, str(tmp_path)):
        with Checkpoints(workdir, keep=2) as checkpoints:
            assert checkpoints.latest == 4
            states.append(checkpoints.restore(run.state, run.data))
        assert run.data.get_state() == {"examples": 4 * config.train.batch_size}
    for one, other in zip(*(jax.tree.leaves(state) for state in states), strict=True):
        np.testing.assert_array_equal(one, other)
    assert lines(straight) == lines(tmp_path)


@pytest.fixture
def half(trained, tmp_path):
    """A copy of the workdir of `trained` as after two of its four steps, whose program is there already."""
    shutil.copytree(trained[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    return str(tmp_path / "run")


def test_an_evaluation_that_sigterm_broke_off_is_made_up(half, miniature, monkeypatch):
    """The last one of a run too: it ends as preempted, and the same command evaluates without training."""
    workdir, config, asked = half, miniature(train__evaluate_every=4, eval__pictures=2), []

    def due(preemption):
        asked.append(preemption)
        preemption._preempted = len(asked) > 1  # not yet after step 3
        return preemption._preempted

    with monkeypatch.context() as patch:
        patch.setattr(loop.Preemption, "due", due)
        for _ in range(2):  # in the step's own turn, then while it is made up
            with pytest.raises(loop.Preempted) as stopped:
                loop.train(config, workdir)
            assert stopped.value.code == PREEMPTED_STATUS
            with Checkpoints(workdir, read_only=True) as checkpoints:
                assert (checkpoints.latest, checkpoints.best) == (4, None)
    for _ in range(2):  # and once done, no more
        loop.train(config, workdir)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.best == checkpoints.latest == 4
    files_of_board = pathlib.Path(workdir, "tensorboard").iterdir()
    events = [event for path in files_of_board for _, event in board._records(path.read_bytes())]
    shown = [(event.step, value.tag) for event in events for value in event.summary.value if value.HasField("image")]
    assert shown == [(4, board.PICTURE_TAG)]
    scores = [line["AP"] for line in lines(workdir) if "AP" in line]
    assert scores == [pytest.approx(evaluate(config, workdir)["best"]["AP"], abs=1e-6)]


@pytest.fixture(scope="module")
def tree():
    return {"w": jax.numpy.arange(20_000, dtype=np.float32)}


def test_a_failing_evaluation_loses_no_step(half, miniature, monkeypatch):
    """Its step is saved before, without an AP, and its metrics before that; the same command evaluates it.

    Whatever the error, in the midst of a run and at its end.
    """
    recipe = miniature(train__evaluate_every=3, train__log_every=1)
    outcomes = iter([ValueError("too many unreadable"), 0.25, MemoryError("no room"), 0.5])
    saved, save = [], Checkpoints.save

    def spy(self, step, *arguments):
        saved.append((step, lines(half)[-1]["step"]))
        save(self, step, *arguments)

    def evaluate(*_):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(Checkpoints, "save", spy)
    monkeypatch.setattr(loop.Evaluator, "best_ap", evaluate)
    for error, message, step, best in ((ValueError, "too many", 3, None), (MemoryError, "no room", 4, 3)):
        with pytest.raises(error, match=message):
            loop.train(recipe, half)
        with Checkpoints(half, read_only=True) as checkpoints:
            assert (checkpoints.latest, checkpoints.best) == (step, best)
        assert saved[-1] == (step, step)
    loop.train(recipe, half)
    with Checkpoints(half, read_only=True) as checkpoints:
        assert checkpoints.best == 4
    scores = [(line["step"], line["AP"]) for line in lines(half) if "AP" in line]
    assert scores == [(3, 0.25), (4, 0.5)] and len(saved) == 2 and next(outcomes, None) is None


def test_the_newest_and_the_best_stay(tree, tmp_path):
    """The best is the newest of the highest AP; a checkpoint without AP is never the best."""
    with Checkpoints(str(tmp_path), keep=2) as checkpoints:
        assert checkpoints.best is None
        checkpoints.save(1, tree, Position(8))
        assert checkpoints.best is None
        for step, ap in ((2, 0.5), (3, 0.5), (4, 0.0), (5, None), (6, None)):
            checkpoints.save(step, tree, Position(8 * step))
            if ap is not None:
                checkpoints.add_ap(step, ap)
    assert steps(tmp_path) == [3, 5, 6]
    with Checkpoints(str(tmp_path), read_only=True) as checkpoints:
        assert (checkpoints.best, checkpoints.latest) == (3, 6)
        position = Position()
        checkpoints.restore(tree, position, step=checkpoints.best)
        assert position.examples == 24


def test_another_format_is_named(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "FORMAT", 2)
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(7, tree, Position())
    monkeypatch.undo()
    with Checkpoints(str(tmp_path), read_only=True) as checkpoints:
        with pytest.raises(ValueError, match=r"checkpoints/7: is of checkpoint format 2, .* reads 1"):
            checkpoints.restore(tree)


def test_a_full_disk_leaves_the_last_good_checkpoint(tree, tmp_path):
    """A limit on the size of files stands in for the disk."""
    with Checkpoints(str(tmp_path), keep=1) as checkpoints:
        checkpoints.save(1, tree, Position(8))
    other = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(0), x.shape), tree)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=rf"{tmp_path}/checkpoints: cannot write a checkpoint: .*[Ll]arge"):
            checkpoints.save(2, other, Position(16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Checkpoints(str(tmp_path), keep=1) as checkpoints:
        assert checkpoints.latest == 1
        position = Position()
        np.testing.assert_array_equal(checkpoints.restore(tree, position)["w"], tree["w"])
        assert position.examples == 8
        checkpoints.save(2, other, Position(16))
    assert steps(tmp_path) == [2]


def test_parameters_are_read_without_the_optimizer(trained, monkeypatch):
    """The moving averages or the newest values, as numpy; nothing else of the optimizer is read."""
    recipe, workdir = trained
    state = Checkpoints(workdir, read_only=True).restore(flat.unflatten(loop.prepare(recipe).state))
    kept = []
    read = Checkpoints.read
    monkeypatch.setattr(Checkpoints, "read", lambda self, step: kept.append(read(self, step)) or kept[-1])
    for ema in (True, False):
        restored = read_variables(workdir, ema=ema)
        assert (restored.step, restored.averaged, restored.seed) == (4, ema, 0)
        expected = state.opt_state[-1] if ema else state
        for name in ("params", "batch_stats"):
            jax.tree.map(np.testing.assert_array_equal, restored.variables[name], getattr(expected, name))
            assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(restored.variables[name]))
    arrays = [leaf for leaf in jax.tree.leaves(kept[0]["opt_state"][:-1]) if isinstance(leaf, np.ndarray)]
    assert not arrays and len(jax.tree.leaves(state.opt_state[:-1])) > 100


def test_a_bucket_is_a_workdir(miniature, tmp_path):
    """gs:// paths, over a stand-in for the bucket: config, claims and metrics; they are objects written whole."""
    with epath_bucket.over(tmp_path):
        claim_workdir(miniature(), "gs://bucket/run")
        claim_workdir(miniature(stride=8), "gs://bucket/run")  # no checkpoint, no model yet
        checkpoint = tmp_path / "bucket/run/checkpoints/4"
        checkpoint.mkdir(parents=True)
        assert not holds_checkpoint("gs://bucket/run")  # cut short: nothing says yet that it is whole
        claim_workdir(miniature(stride=8), "gs://bucket/run")
        (checkpoint / "commit_success.txt").touch()
        with pytest.raises(ValueError, match=r"(?s)gs://bucket/run.*another model.*stride: 8 there, 4 in"):
            check_workdir(miniature(), "gs://bucket/run")
        assert stored_recipe("gs://bucket/run") == miniature(stride=8, joint_set=COCO)
        for step in (0, 4):
            record_start("gs://bucket/run", step)
        assert training_device("gs://bucket/run") == "cpu"
        files.write_bytes("gs://bucket/run/metrics.jsonl", b'{"step": 1}\n{"step": 2}\n{"st')
        writer = MetricsWriter("gs://bucket/run", 1)
        writer.write(2, {"loss": 3.0})
        assert lines(tmp_path / "bucket/run") == [{"step": 1}]
        writer.flush()
        assert lines(tmp_path / "bucket/run") == [{"step": 1}, {"step": 2, "loss": 3.0}]
        writer.write(3, {"loss": 2.0})
        writer.close()
    assert lines(tmp_path / "bucket/run")[2:] == [{"step": 3, "loss": 2.0}]


def test_a_bucket_that_refuses_is_named(miniature, tmp_path):
    class Forbidden(Exception):
        """As a bucket's client: a type of its own."""

    def refuse(*_, **__):
        raise Forbidden("403: storage.objects.create denied")

    with epath_bucket.over(tmp_path, open=refuse):
        with pytest.raises(OSError, match=r"^gs://bucket/run/config\.json: Forbidden: 403: .* denied"):
            claim_workdir(miniature(), "gs://bucket/run")
    with epath_bucket.over(tmp_path, exists=refuse):
        with pytest.raises(OSError, match=r"^gs://bucket/run: Forbidden: 403"):
            check_workdir(miniature(), "gs://bucket/run")
