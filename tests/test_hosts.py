import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from dpose_jax import hosts
from dpose_jax.evaluation.run import evaluate
from dpose_jax.training.loop import train

ROOT = pathlib.Path(__file__).parents[1]
FIRST_SLURM_PORT = 65535 - 2**12 + 1  # where JAX looks for the coordinator of a SLURM job: this + job id mod 2^12
FIELDS = {"model__backbone": "speck", "train__evaluate_every": 4, "eval__pictures": 2}


def free_port():
    """One that SLURM's rule can name too."""
    for port in range(FIRST_SLURM_PORT + os.getpid() % 4000, 65535):
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("localhost", port))
            return port
    raise OSError("no free port")


def together(command, environments):
    """Runs a command once for each environment, at the same time; returns their outputs."""
    runs = [
        subprocess.Popen(
            [sys.executable, *part],
            env=os.environ | extra,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part, extra in zip(command, environments, strict=True)
    ]
    outputs = [run.communicate() for run in runs]
    for run, (_, err) in zip(runs, outputs, strict=True):
        assert run.returncode == 0, err
    return [out for out, _ in outputs]


def lines(workdir):
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_compute_what_one_does(miniature, tmp_path):
    """Training as a SLURM job, evaluation by flags: losses, averages, AP and every predicted joint of one process.

    Eight training persons and seven validation persons, in batches of eight and four: each counts once.
    """
    config = miniature(**FIELDS)
    train(config, str(tmp_path / "one"))
    alone = evaluate(config, str(tmp_path / "one"))

    port = free_port()
    arguments = ["--config=tests/miniature.py", f"--workdir={tmp_path / 'two'}"]
    arguments += [f"--config.{name.replace('__', '.')}={value}" for name, value in FIELDS.items()]
    slurm = {"SLURM_JOB_ID": str(port - FIRST_SLURM_PORT), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    ranks = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    first, second = together([["train.py", *arguments]] * 2, [slurm | rank for rank in ranks])
    assert "data: kept" in first and "data: kept" not in second
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert one["step"] == two["step"]
        for name in set(one) - {"step", "examples_per_second"}:
            assert two[name] == pytest.approx(one[name], rel=1e-3), (one["step"], name)

    flags = [f"--coordinator_address=localhost:{port}", "--num_processes=2", "--config.eval.checkpoint=best"]
    parts = [["eval.py", *arguments, *flags, f"--process_id={i}"] for i in range(2)]
    first, second = together(parts, [{}, {}])
    assert "steps_1" in first and "steps_1" not in second
    both = json.loads((tmp_path / "two" / "eval.json").read_text())
    assert both["protocol"]["persons"] == alone["protocol"]["persons"] and both["protocol"]["skipped"] == 0
    for name, result in alone["results"].items():
        assert both["results"][name] == pytest.approx(result, abs=1e-3), name
        one, two = (json.loads((tmp_path / n / "results" / f"val_gt_{name}.json").read_text()) for n in ("one", "two"))
        assert [row["image_id"] for row in one] == [row["image_id"] for row in two]
        np.testing.assert_allclose([r["score"] for r in two], [r["score"] for r in one], rtol=1e-2)
    assert (tmp_path / "two" / "pictures" / "predictions.png").exists()


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
            hosts.connect(**given, seconds=20)
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
    assert jax.process_count() == 1 and hosts.is_first()
    rows = {"a": np.arange(3)}
    assert hosts.gather(rows) is rows


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
    assert message.split(".*")[1] in done.stderr and "Check failure" not in done.stderr
