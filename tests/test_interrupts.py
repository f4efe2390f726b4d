"""Ctrl-C, second signals, killed parents and workers."""

import contextlib
import functools
import io
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import grain
import kill_saves
import numpy as np
import pytest

from dpose_jax.data.loader import EvalBatches, read_ahead
from dpose_jax.training.preemption import Preempted, Preemption

ROOT = pathlib.Path(__file__).parents[1]
BUSY = """
import hashlib, sys, time
from dpose_jax.training.preemption import Preemption
with Preemption() as preemption:
    print("ready", flush=True)
    while not preemption.due():
        time.sleep(0.01)
    print("told", flush=True)
    if sys.argv[1] == "deaf":  # a long call, in which Python handles no signal
        hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
"""
COMPILING = """
import signal, tempfile, threading
import jax, jax.numpy as jnp
from absl import flags
from dpose_jax.runtime import app

flags.DEFINE_integer("signal", 2, "")

def slow(x):
    for k in range(300):
        x = jnp.sin(x * k) @ jnp.cos(x + k)
    return x

def main():
    lowered = jax.jit(slow).lower(jnp.ones((8, 8)))
    print(folder.name)
    try:
        threading.Timer(0.3, signal.raise_signal, [flags.FLAGS.signal]).start()
        lowered.compile()
        print("compiled")
    finally:
        print("unwound")

folder = tempfile.TemporaryDirectory()
app.run(main, keep_programs=False)
"""
READER = """
import signal, sys, time
import numpy as np
import grain
from dpose_jax.data.loader import read_ahead

if __name__ == "__main__":
    dataset = grain.MapDataset.range(100_000).map(lambda i: {"image": np.full((64, 64, 64), i)}).batch(2)
    batches = iter(read_ahead(dataset, 2))
    for _ in range(4):  # of every worker
        next(batches)
    if len(sys.argv) > 1:
        signal.signal(int(sys.argv[1]), lambda *_: None)
        print("ready", flush=True)
        time.sleep(1)  # until the signal comes
        for _ in range(30):
            next(batches)
        print("went on", flush=True)
        sys.exit()
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def foreground():
    """As in a terminal. nohup and a background shell have these signals ignored, in child processes too."""
    before = [signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGHUP), before, strict=True):
        signal.signal(number, handler)


def begin(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "ready\n"
    limit = threading.Timer(120, process.kill)  # what a signal should have ended fails then, and does not hang
    limit.daemon = True
    limit.start()
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_is_named(number):
    with Preemption() as preemption:
        assert not preemption.due()
        signal.raise_signal(number)
        assert preemption.due() and preemption.name == number.name
    assert "SIGINT: step 3 is saved" in str(preempted("SIGINT"))


def preempted(name):
    with contextlib.redirect_stderr(io.StringIO()) as told:
        assert Preempted(3, name).code == 75
    return told.getvalue()


def test_a_terminal_that_ends_asks_too_but_not_under_nohup(monkeypatch):
    """SIGHUP; what is said of it may reach nobody."""

    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    with Preemption() as preemption:
        signal.raise_signal(signal.SIGHUP)
        assert preemption.due() and preemption.name == "SIGHUP"
    assert Preempted(3, "SIGHUP").code == 75
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            signal.raise_signal(signal.SIGHUP)
            assert not preemption.due()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_busy_run_at_once(second):
    process = begin(BUSY, "deaf")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "told\n"
    process.send_signal(second)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + second
    assert "SIGINT: saving after this step" in error and "ended without saving" in error and "Traceback" not in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_compilation_ends_a_program_with_its_status(number):
    """The compilation goes on in a thread; what was printed and opened is complete and gone as at any end."""
    command = [sys.executable, "-c", COMPILING, f"--signal={int(number)}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    folder, *said = done.stdout.splitlines()
    assert (done.returncode, said) == (128 + number, ["unwound"]), done.stderr
    assert not os.path.exists(folder)
    assert done.stderr.strip() == ("interrupted" if number == signal.SIGINT else "")


def test_the_handlers_go_with_the_context():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Preemption():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signal.set_wakeup_fd(-1) == -1


def children(parent):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def ended(workers, deadline):
    while time.monotonic() < deadline and any(map(alive, workers)):
        time.sleep(0.1)
    return not any(map(alive, workers))


def test_workers_and_shared_memory_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(READER)
    before = set(os.listdir("/dev/shm"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "ready\n"
    workers = children(process.pid)
    assert len(workers) >= 3  # and Python's resource tracker
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    assert ended(workers, deadline)
    # Other programs of this machine have segments too, which come and go.
    left = {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")}
    while time.monotonic() < deadline + 20 and left & set(os.listdir("/dev/shm")):
        time.sleep(0.1)
    assert not left & set(os.listdir("/dev/shm"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_workers_read_on_after_a_signal_to_the_whole_group(number, tmp_path):
    """As `timeout`, SLURM and a terminal that ends send it: the run decides, and its workers end with it."""
    script = tmp_path / "reader.py"
    script.write_text(READER)
    environment, pipe = os.environ | {"PYTHONPATH": str(ROOT)}, subprocess.PIPE
    command = [sys.executable, str(script), str(int(number))]
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    workers = children(process.pid)
    os.killpg(process.pid, number)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "went on\n"), error
    assert ended(workers, time.monotonic() + 10)


class Killed:
    """A row that a worker cannot make."""

    def __init__(self, number):
        self._number = number

    def __call__(self, index):
        os.kill(os.getpid(), self._number)


@pytest.mark.parametrize(("number", "hint"), [("SIGKILL", "lower data.workers"), ("SIGBUS", "/dev/shm is full")])
def test_a_killed_worker_is_named(number, hint):
    dataset = grain.MapDataset.source(np.arange(4)).map(Killed(signal.Signals[number])).batch(2)
    with pytest.raises(ChildProcessError, match=rf"data\.workers was killed by {number} .*{hint}"):
        next(iter(EvalBatches(dataset, functools.partial(read_ahead, workers=1))))


@pytest.mark.parametrize("steps", [(5, None), (5, 2), (5, None, 2)])
def test_the_check_of_kills_fails_where_a_step_goes_back(steps):
    expected, before = {step: f"bits of {step}" for step in range(9)}, None
    with pytest.raises(SystemExit, match="step 5 was saved, (nothing|step 2) is left"):
        for kill, step in enumerate(steps):
            before = kill_saves.check(kill, before, (step, expected.get(step)), expected)


def test_the_check_of_kills_passes_and_compares():
    expected, before = {step: f"bits of {step}" for step in range(9)}, None
    for kill, step in enumerate((None, 2, 2, 5)):
        before = kill_saves.check(kill, before, (step, expected.get(step)), expected)
    assert before == 5
    with pytest.raises(SystemExit, match="step 6 is not what it was"):
        kill_saves.check(4, before, (6, "other bits"), expected)
