import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import benchmark
import benchmarks
from benchmarks import peers, report, speed_rows
from dpose_jax.diffusion.sampler import SamplerSettings
from dpose_jax.models import layers
from dpose_jax.pose.codec import Codec

ROOT = pathlib.Path(__file__).parents[1]


def command(*arguments, **options):
    program = [sys.executable, "benchmark.py", *arguments]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, **options)


def test_list_of_subcommands(capsys):
    benchmark.main([])
    printed, known = capsys.readouterr().out, benchmarks.subcommands()
    assert {
        "accelerator",
        "codec",
        "folds",
        "growth",
        "oks",
        "speed",
        "steps",
        "study",
        "topology",
        "uncertainty",
    } == set(known)
    for name, line in known.items():
        assert len(line) > 20 and any(row.split() == [name, *line.split()] for row in printed.splitlines())


def test_unknown_subcommand():
    with pytest.raises(SystemExit, match="^error: unknown subcommand 'sped': must be one of .*speed"):
        benchmark.main(["sped"])


def test_subcommand_without_its_package(monkeypatch, tmp_path):
    """The list still shows it, and using it names what is missing."""
    (tmp_path / "broken.py").write_text('"""Needs a package."""\nimport no_such_package\n\n\ndef main():\n    pass\n')
    monkeypatch.setattr(benchmarks, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(benchmarks, "__path__", [str(tmp_path)])
    assert benchmarks.subcommands() == {"broken": "Needs a package."}
    with pytest.raises(SystemExit, match="broken needs the package 'no_such_package'"):
        benchmarks.load("broken")


def test_measure_takes_turns_and_gives_seconds():
    order = []

    def call(name, seconds):
        order.append(name)
        time.sleep(seconds)

    found = report.measure({"a": lambda: call("a", 0.002), "b": lambda: call("b", 0.02)}, seconds=0.05, least=4)
    assert order == ["a", "b"] * (len(order) // 2)
    assert found["a"].calls == found["b"].calls == len(order) // 2 - 1 >= 4
    assert 0.002 <= found["a"].low <= found["a"].median <= found["a"].high
    assert 0.02 <= found["b"].median < 0.2


def test_compiled_runs_and_says_how_long_it_took():
    run, seconds = report.compiled(lambda x: 2 * x, jnp.arange(3.0))
    np.testing.assert_array_equal(run(jnp.arange(3.0)), [0, 2, 4])
    assert seconds > 0


def test_report_is_json_and_a_table(tmp_path, capsys):
    rows = [{"work": "a", "value": np.float32(0.5)}, {"work": "b", "value": 12345.6, "note": "x"}]
    environment = report.environment()
    report.write(str(tmp_path / "new" / "r.json"), rows, environment=environment, protocol={"batch": 4})
    stored = json.loads((tmp_path / "new" / "r.json").read_text())
    assert stored == {"environment": environment, "protocol": {"batch": 4}, "rows": rows}
    assert environment["cores"] >= 1 and environment["versions"]["jax"] and environment["load"] >= 0
    lines = (tmp_path / "new" / "r.md").read_text().splitlines()
    assert lines == capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["work", "value", "note"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["b", "12,346", "x"]
    assert len({len(line) for line in lines}) == 1
    assert report.table([]) == ""


def test_the_peer_of_the_convolution_computes_the_same():
    pytest.importorskip("torch", reason="PyTorch, the peer, is not installed")
    rng = np.random.default_rng(0)
    x, gradient = (rng.normal(size=(2, 8, 6, 16)).astype(np.float32) for _ in range(2))
    kernel = rng.normal(size=(3, 3, 16, 16)).astype(np.float32)
    y, pull = jax.vjp(layers.convolve, x, kernel)
    maps = peers.torch_convolution(x, kernel, gradient, train=False)()
    for_x, for_kernel = peers.torch_convolution(x, kernel, gradient, train=True)()
    found = maps.numpy().transpose(0, 2, 3, 1), for_x.numpy().transpose(0, 2, 3, 1), for_kernel.numpy()
    for ours, theirs in zip((y, *pull(gradient)), (*found[:2], found[2].transpose(2, 3, 1, 0)), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("unit", ["sets/s", "ms a set"])
def test_entries_are_rates_or_times(monkeypatch, unit):
    monkeypatch.setattr(report, "measure", lambda calls: {name: report.timing([0.1, 0.2, 0.4]) for name in calls})
    first, second = speed_rows.entries("work", unit, {"ours": None, "peer": None}, 4, compile_seconds=3.0)
    value, low, high = (20, 40 / 3, 80 / 3) if unit == "sets/s" else (50, 37.5, 75)
    assert [first["value"], first["low"], first["high"]] == pytest.approx([value, low, high])
    assert first["compile_seconds"] == 3 and "compile_seconds" not in second and second["who"] == "peer"


@pytest.mark.parametrize("refresh", [False, True])
def test_the_timed_sampler_hands_on_what_it_is_fed(refresh):
    """Its network does nothing, so what is timed is the sampler alone."""
    codec = Codec((64, 48), 2, sigma=2.0, blur=5)
    heatmaps = speed_rows.draw_heatmaps(codec, batch=3)
    settings = SamplerSettings(steps=3, update_rule="direct", refresh=refresh)
    np.testing.assert_array_equal(jax.jit(speed_rows.sampling(settings, codec))(heatmaps), heatmaps)


@pytest.mark.parametrize("refresh", [False, True])
def test_the_timed_sampler_draws_its_masks(monkeypatch, refresh):
    """Masks that nothing reads would be left out by XLA, and their time with them."""
    monkeypatch.setattr(
        speed_rows, "masks_of", lambda keypoints, visible, size: 2 * (jnp.full((3, *size, 1), jnp.inf),)
    )
    codec = Codec((64, 48), 2, sigma=2.0, blur=5)
    settings = SamplerSettings(steps=3, update_rule="direct", refresh=refresh)
    final = jax.jit(speed_rows.sampling(settings, codec))(speed_rows.draw_heatmaps(codec, batch=3))
    assert np.isnan(final[0, 0, 0, 0]) and np.isfinite(np.asarray(final).ravel()[1:]).all()


@pytest.mark.parametrize("names", [["tensorflow"], ["hrnet"], ["hrnet:/no/such/folder"]])
def test_unknown_peers_are_named(monkeypatch, names):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=rf"--peer={names[0]}: must be .*hrnet:FOLDER"):
        peers.parse(names)


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--peer=diffusers: diffusers is not installed"):
        peers.parse(["diffusers"])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("heatmap", "--rows=heatmap: must be among heatmaps, decode"),
        ("start,oks", "--annotations is not given"),
        ("start,input", "data.root"),
    ],
)
def test_what_a_row_lacks_is_reported_before_any_is_measured(tmp_path, chosen, message):
    environment = {key: value for key, value in os.environ.items() if key != "DPOSE_DATA"}
    done = command("speed", f"--rows={chosen}", f"--out={tmp_path}/speed.json", env=environment)
    assert done.returncode == 1 and not any(tmp_path.iterdir()) and message in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_peak_memory_is_that_of_the_process():
    held = np.ones(2**24)
    peak = speed_rows.peak_memory(os.getpid())
    assert held.nbytes < peak < 2**36
    assert speed_rows.peak_memory(2**30) == 0


def gpu_script(folder, *parts, **environment):
    """benchmarks/gpu.sh called in `folder` with relative paths, and a Python that notes its calls; both."""
    for name in ("coco", "out"):
        (folder / name).mkdir(exist_ok=True)
    python, calls = folder / "python", folder / "calls"
    calls.write_text("")
    python.write_text(
        f'#!/bin/sh\necho "$PWD $*" >>{calls}\ncase "$1" in eval.py) exit 3;; predict.py) sleep 9;; esac\n'
    )
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python)} | environment
    program = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "coco", "out", *parts]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return done, calls.read_text().splitlines()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the machines of GPUs run Linux")
def test_the_parts_of_the_gpu_script(tmp_path):
    """Each runs in the clone's root; one that fails or takes too long is named, and the others go on."""
    done, (_, *calls) = gpu_script(tmp_path, LIMIT="1", BATCHES="8,1")
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert done.returncode == 1 and done.stdout.splitlines() == summary and len(summary) == len(calls) == 28
    assert all(call.startswith(f"{ROOT} ") and str(tmp_path / "out") in call for call in calls)
    assert [line for line in summary if "status 0" not in line] == [
        f"eval: status 3, {summary[7].split()[-2]} s",
        f"predict: status 124, stopped after 1 s, {summary[8].split()[-2]} s",
    ]
    workers = max(len(os.sched_getaffinity(0)) - 2, 1)
    assert f"--config.data.root={tmp_path}/coco" in calls[5] and f"--config.data.workers={workers}" in calls[5]
    reports = [tmp_path / "out" / f"accelerator_{size}.json" for size in ("w32_256x192", "w48_384x288")]
    for dtype, report_file, first in (("bfloat16", reports[0], 0), ("float32", reports[1], 22)):
        for work in range(5):
            asked = f"--peer=torch --dtypes={dtype} --batches=8,1 --work={work} --out={report_file}"
            assert calls[first + work].endswith(asked)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the machines of GPUs run Linux")
def test_chosen_parts_of_the_gpu_script(tmp_path):
    done, (_, *calls) = gpu_script(tmp_path, "w48_*_train", "export")
    assert done.returncode == 0 and [call.split()[-1] for call in calls] == [
        f"--out={tmp_path}/out/model.bin", *2 * [f"--out={tmp_path}/out/accelerator_w48_384x288.json"]
    ]  # fmt: skip
    done, calls = gpu_script(tmp_path, "train", "trian")
    assert done.returncode == 2 and not calls
    assert "error: PART trian: must be among w32_bfloat16_infer_coarse w32_bfloat16_infer_1_step" in done.stderr


def test_a_sampling_step_takes_turns_with_the_peer(monkeypatch):
    """Of nine steps and one, an eighth of the difference is ours; load on the machine meets theirs alike."""
    turns, seconds = [], {1: 0.01, speed_rows.STEPS: 0.09, "diffusers, on heatmaps": 0.5}

    def measure(calls):
        turns.append(list(calls))
        return {name: report.timing([seconds[name]]) for name in calls}

    monkeypatch.setattr(report, "measure", measure)
    monkeypatch.setattr(report, "compiled", lambda *_: (np.copy, 1.0))
    monkeypatch.setattr(peers, "diffusers_step", lambda maps, eta: None)
    rows = speed_rows.sampler({"diffusers": ""}, None)
    assert turns == 2 * [[1, speed_rows.STEPS, "diffusers, on heatmaps"]] + [[1, speed_rows.STEPS]]
    assert [row["who"] for row in rows] == ["ours", "diffusers, on heatmaps"] * 2 + ["ours"]
    assert [row["value"] for row in rows] == pytest.approx([10, 500, 10, 500, 10])


def test_rows_are_kept_when_a_later_one_fails(tmp_path):
    def parts():
        yield [{"work": "heatmaps", "value": 1.0}, {"work": "masks", "value": 2.0}]
        yield [{"work": "decode", "value": 3.0}]
        raise RuntimeError("RESOURCE_EXHAUSTED: no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        report.kept(str(tmp_path / "r.json"), parts(), environment={"cores": 2})
    stored = json.loads((tmp_path / "r.json").read_text())
    assert [row["work"] for row in stored["rows"]] == ["heatmaps", "masks", "decode"] and stored["environment"]
    assert len((tmp_path / "r.md").read_text().splitlines()) == 5


def test_speed_compares_no_gpu_with_a_cpu(monkeypatch):
    speed_rows.check_peer(["heatmaps", "network"], {"torch": ""})
    monkeypatch.setattr(speed_rows.jax, "default_backend", lambda: "gpu")
    speed_rows.check_peer(["heatmaps", "decode"], {"torch": ""})
    speed_rows.check_peer(["network"], {"hrnet": ""})
    message = "--rows=network,convolution: JAX runs on 'gpu', the peer torch on the CPU; benchmark.py accelerator"
    with pytest.raises(ValueError, match=message):
        speed_rows.check_peer(["heatmaps", "network", "convolution"], {"torch": ""})


def test_programs_that_rows_start_find_memory_on_a_gpu():
    speed_rows.leave_memory(environment := {})
    assert environment == {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    speed_rows.leave_memory(given := {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"})
    assert given["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"
