import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dpose_jax.evaluation.evaluator import evaluate
from dpose_jax.runtime import multihost
from dpose_jax.training.loop import train
from dpose_jax.training.preemption import PREEMPTED_STATUS

ROOT = pathlib.Path(__file__).parents[1]
FIRST_SLURM_PORT = 65535 - 2**12 + 1  # where JAX looks for the coordinator of a SLURM job: this + job id mod 2^12
FIELDS = {"train__evaluate_every": 4, "eval__pictures": 2, "sampler__steps": (1,)}
# Long to compile, and within an example; test_sharding.py has it over eight devices.
FIELDS |= {"model__spatial_attention": False, "model__channel_attention": False}


def free_port():
    """One that SLURM's rule can name too."""
    for port in range(FIRST_SLURM_PORT + os.getpid() % 4000, 65535):
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("localhost", port))
            return port
    raise OSError("no free port")


# The first process compiles for all; one that has another program than the first waits for it in vain and fails.
SHARED = {"JAX_SHARE_BINARY_BETWEEN_HOSTS": "true", "JAX_SHARE_BINARY_BETWEEN_HOSTS_TIMEOUT_MS": "300000"}
# Runs a script. JAX's key of a program would hold the number of the process where there are CPUs, so that no other
# process found it.
ONE_COMPILER = """
import runpy, sys
from jax._src import cache_key
cache_key._hash_accelerator_config = cache_key._hash_devices
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(command, environments):
    """Starts a program with its arguments once for each environment."""
    return [
        subprocess.Popen(
            [sys.executable, "-c", *part],
            env=os.environ | SHARED | extra,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part, extra in zip(command, environments, strict=True)
    ]


def together(command, environments):
    """Runs a program once for each environment, at the same time; returns their outputs."""
    return ended(start(command, environments))


def ended(runs, status=0):
    """Waits for all; returns what each printed."""
    outputs = [run.communicate() for run in runs]
    for run, (_, err) in zip(runs, outputs, strict=True):
        assert run.returncode == status, err
    return [out for out, _ in outputs]


def slurm_job(port, count):
    """The environment of each process of a SLURM job that meets at this port."""
    job = {"SLURM_JOB_ID": str(port - FIRST_SLURM_PORT), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    return [job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(count)]


def lines(workdir):
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def arguments(workdir, **fields):
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    return ["--config=tests/miniature.py", f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def alone(miniature, tmp_path_factory):
    """The workdir of a run of one process, and the report of its evaluation."""
    config, workdir = miniature(**FIELDS), tmp_path_factory.mktemp("one")
    train(config, str(workdir))
    return workdir, evaluate(config, str(workdir))


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_compute_what_one_does(count, alone, tmp_path):
    """Training as a SLURM job, evaluation by flags: losses, averages, AP and every predicted joint of one process.

    Eight training persons and seven validation persons, in batches of eight and four: each counts once.
    """
    one, expected = alone
    port, command = free_port(), arguments(tmp_path, **FIELDS)
    outputs = together([[ONE_COMPILER, "train.py", *command]] * count, slurm_job(port, count))
    assert ["data: kept" in out for out in outputs] == [True] + [False] * (count - 1)
    for mine, theirs in zip(lines(one), lines(tmp_path), strict=True):
        assert mine["step"] == theirs["step"]
        for name in set(mine) - {"step", "examples_per_second"}:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3), (mine["step"], name)

    flags = [f"--coordinator_address=localhost:{port}", f"--num_processes={count}", "--config.eval.checkpoint=best"]
    parts = [[ONE_COMPILER, "eval.py", *command, *flags, f"--process_id={i}"] for i in range(count)]
    outputs = together(parts, [{}] * count)
    assert ["steps_1" in out for out in outputs] == [True] + [False] * (count - 1)
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["protocol"]["persons"] == expected["protocol"]["persons"] and found["protocol"]["skipped"] == 0
    for name, result in expected["results"].items():
        assert found["results"][name] == pytest.approx(result, abs=1e-3), name
        mine, theirs = (
            json.loads((folder / "results" / f"val_gt_{name}.json").read_text()) for folder in (one, tmp_path)
        )
        assert [row["image_id"] for row in mine] == [row["image_id"] for row in theirs]
        np.testing.assert_allclose([r["score"] for r in theirs], [r["score"] for r in mine], rtol=1e-2)
    assert (tmp_path / "pictures" / "predictions.png").exists()


def test_a_signal_to_one_process_saves_the_step_of_all(tmp_path):
    endless = {"train__steps": 100_000, "train__checkpoint_every": 100_000}
    endless |= {"model__spatial_attention": False, "model__channel_attention": False}  # which take long to compile
    command = [ONE_COMPILER, "train.py", *arguments(tmp_path, **endless, train__log_every=1)]
    runs = start([command] * 2, slurm_job(free_port(), 2))
    log = tmp_path / "metrics.jsonl"
    while not (log.exists() and log.read_text()):
        assert all(run.poll() is None for run in runs), [run.communicate() for run in runs]
        time.sleep(0.1)
    runs[1].send_signal(signal.SIGTERM)
    ended(runs, PREEMPTED_STATUS)
    (saved,) = (int(name) for name in os.listdir(tmp_path / "checkpoints") if name.isdigit())
    assert 0 < lines(tmp_path)[-1]["step"] <= saved < 100_000


# A program that never asks whether SIGTERM has come, such as eval.py.
DEAF = """
import time
from dpose_jax.runtime import app
from dpose_jax.runtime import multihost

multihost.define_flags()

def main():
    multihost.connect_from_flags(notes_sigterm=False)
    print("joined", flush=True)
    time.sleep(60)

app.run(main)
"""


def test_a_signal_ends_a_program_that_does_not_ask_for_it():
    runs = start([[DEAF]] * 2, slurm_job(free_port(), 2))
    for run in runs:
        assert run.stdout.readline() == "joined\n", run.communicate()
    for run in runs:
        run.send_signal(signal.SIGTERM)
    ended(runs, 128 + signal.SIGTERM)


# Agreements of two processes of which one fails; at last one fails where the other waits for it.
FAILING = """
import time
import numpy as np
from absl import flags
from dpose_jax.runtime import app, multihost

multihost.define_flags()
flags.DEFINE_string("kind", "value", "")
flags.DEFINE_integer("failing", 1, "")

def fail(kind, number):
    if multihost.jax.process_index() == number:
        raise kind("of one")
    return number

def said(function):
    try:
        print(function(), flush=True)
    except (ValueError, OSError, KeyError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)

def main():
    multihost.connect_from_flags(notes_sigterm=False)
    said(lambda: multihost.agreed(lambda: fail(OSError, 2)))
    said(lambda: multihost.agreed(lambda: fail(OSError, 1)))
    said(lambda: multihost.from_first(lambda: fail(KeyError, 0)))
    said(lambda: multihost.from_first(lambda: fail(ValueError, 0)))
    for _ in range(2):  # the second finds it compiled
        multihost.gather(np.zeros(1))
    multihost.LEAVING_SECONDS = 1.0
    fail(KeyboardInterrupt if flags.FLAGS.kind == "interrupt" else ValueError, flags.FLAGS.failing)
    if flags.FLAGS.kind == "status":
        time.sleep(2 * multihost.jax.process_index())
        raise SystemExit(75)
    multihost.gather(np.zeros(1))

app.run(main)
"""


def failing(*given):
    """Status, lines of output and of errors of each of the two processes, without Gloo's."""
    each = {"JAX_SHARE_BINARY_BETWEEN_HOSTS": "false"}  # compiles for itself
    runs = start([[FAILING, *given]] * 2, [job | each for job in slurm_job(free_port(), 2)])
    outputs = [run.communicate(timeout=100) for run in runs]
    lines = [[[line for line in text.splitlines() if line[:6] != "[Gloo]"] for text in one] for one in outputs]
    return [(run.returncode, *its) for run, its in zip(runs, lines, strict=True)]


def test_a_process_that_fails_alone_is_not_waited_for():
    """Where others can be told they end with it; where not, it ends by itself with its own status and words."""
    (first, out, lost), (second, other, err) = failing()
    assert (first, second) == (1, 1)
    others = "ValueError: 1 of 2 processes cannot go on, see what they print: [1]"
    assert out == ["2", others, "KeyError: 'of one'", "ValueError: of one"]
    assert other == ["2", "OSError: of one", "OSError: KeyError: 'of one'", "ValueError: of one"]
    assert err[0] == "error: of one" and lost[0].startswith("error: another process of the run has ended, see what it ")
    assert not any(word in line for line in lost + err for word in ("Check failure", "Traceback"))


def test_the_first_process_that_fails_alone_is_not_waited_for():
    """JAX then aborts the others."""
    (first, _, err), (second, _, _) = failing("--failing=0")
    assert first == 1 and err[0] == "error: of one" and second != 0


def test_an_interrupted_process_ends_with_the_status_of_it():
    (_, _, _), (second, _, err) = failing("--kind=interrupt")
    assert second == 128 + signal.SIGINT and "interrupted" in err


def test_a_status_that_all_take_is_waited_for():
    """Here the second process takes twice the time after which a failing one would be left."""
    assert [status for status, _, _ in failing("--kind=status", "--failing=2")] == [75, 75]


GKE = {"TPU_WORKER_HOSTNAMES": "localhost,other", "TPU_WORKER_ID": "1"}
METADATA = {"agent-worker-number": "2", "worker-network-endpoints": "a:1:127.0.0.1,b:2:10.0.0.2,c:3:10.0.0.3"}


@pytest.fixture
def joined(monkeypatch):
    """What JAX is about to join with, as (address, process id); joining itself is left out."""
    found = []

    class Reached(Exception):
        pass

    def stop(address, process_id, **_):
        found.append((address, process_id))
        raise Reached

    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    monkeypatch.setattr("jax._src.distributed._jax.get_distributed_runtime_service", lambda *_, **__: None)
    monkeypatch.setattr("jax._src.distributed._jax.get_distributed_runtime_client", stop)

    def connect(**given):
        with contextlib.suppress(Reached):
            multihost.connect(**given, seconds=20)
        return found

    return connect


def test_cloud_tpu_and_gke_say_where_a_process_belongs(joined, monkeypatch):
    """By the variables that GKE sets, and by the metadata of a TPU VM."""
    cluster = "jax._src.clusters.cloud_tpu_cluster"
    monkeypatch.setattr(f"{cluster}.running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(f"{cluster}.get_metadata", lambda key: (METADATA.get(key, ""), 200))
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # as where there is no metadata of a VM
    with monkeypatch.context() as patch:
        for name, value in GKE.items():
            patch.setenv(name, value)
        assert joined() == [("localhost:8482", 1)]
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    assert joined()[1:] == [("127.0.0.1:8482", 2)]


def test_a_process_of_no_cluster_is_alone(joined):
    assert joined() == [] and joined(num_processes=1) == []
    assert jax.process_count() == 1 and multihost.is_first()
    rows = {"a": np.arange(3)}
    assert multihost.gather(rows) is rows


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator_address": "localhost:1"}, "--num_processes is not given"),
        ({"num_processes": 2, "process_id": 0}, "--coordinator_address is not given"),
        ({"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 2}, "--process_id=2: must be below"),
        ({"coordinator_address": "localhost", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_named(joined, given, message):
    with pytest.raises(ValueError, match=message):
        joined(**given)


@pytest.mark.parametrize("process", [0, 1])
def test_others_that_do_not_come_end_the_process_in_time(process, tmp_path):
    """Whether it waits as the coordinator or for it."""
    flags = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2", f"--process_id={process}"]
    done = subprocess.run(
        [sys.executable, "eval.py", "--config=tests/miniature.py", f"--workdir={tmp_path}", *flags]
        + ["--connect_seconds=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    message = f"error: coordinator_address localhost:.*: process {process} of 2 did not meet all the others within 2 s"
    assert any(line.startswith(message.split(".*")[0]) for line in done.stderr.splitlines()), done.stderr
    assert ": waiting for the other processes, at most 2 s" in done.stderr
    assert message.split(".*")[1] in done.stderr and "Check failure" not in done.stderr
