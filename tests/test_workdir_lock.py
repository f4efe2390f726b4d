import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from dpose_jax.workdir.lock import locked

HOLD = """
import sys
from dpose_jax.workdir.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that holds the lock of a workdir, and the workdir."""
    workdir = str(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, workdir]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process, workdir


def test_a_second_run_is_refused_until_the_first_is_dead(owner, capsys):
    process, workdir = owner
    who = rf"process {process.pid} on host {re.escape(repr(socket.gethostname()))}, started 20\d\d-"
    with pytest.raises(OSError, match=rf"{workdir}/run\.lock: {who}.* trains into this workdir; .*--workdir"):
        with locked(workdir):
            pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with locked(workdir):
        assert re.search(rf"taken over from {who}.*, which is dead\n", capsys.readouterr().out)
        with open(os.path.join(workdir, "run.lock")) as file:
            assert json.load(file)["pid"] == os.getpid()
    assert not os.path.exists(workdir)  # nothing was in it


def test_a_lock_file_of_another_host_or_of_nobody(tmp_path, capsys):
    """It is free, so it is taken; of another host that may not say that its owner is dead."""
    path = tmp_path / "run.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": os.getpid(), "start": "2026"}))
    with locked(str(tmp_path)):
        told = capsys.readouterr().out
        assert "on host 'elsewhere', started 2026, which is dead, or runs where the locks" in told
    for content in (b"", b"\0" * 90, b"[" * 4096, b"5", b'{"host": "a"}', b"\xff"):
        tmp_path.mkdir(exist_ok=True)
        path.write_bytes(content)
        with locked(str(tmp_path)):
            assert not capsys.readouterr().out and json.loads(path.read_text())["pid"] == os.getpid()


def test_the_lock_goes_with_the_run(tmp_path, capsys):
    """However it ends; the next one says nothing."""
    (tmp_path / "config.json").touch()
    with pytest.raises(RuntimeError, match="ended"):
        with locked(str(tmp_path)):
            raise RuntimeError("ended")
    with locked(str(tmp_path)):
        assert os.listdir(tmp_path) and not capsys.readouterr().out
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(str(tmp_path)):
        assert "not locked (No locks available)" in capsys.readouterr().out
