"""The table of one accelerator: what is timed, what it is compared with, which kernels are named."""

import json
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace as Made
from unittest.mock import MagicMock

import jax
import miniature
import pytest
from jax._src.interpreters import pxla

from benchmarks import accelerator_rows as accelerator
from benchmarks import peers, throughput
from dpose_jax.recipe import Recipe


def test_works_by_their_places():
    assert throughput.chosen(None) == list(throughput.WORKS)
    assert throughput.chosen(["3", "0"]) == ["training, coarse", "inference, coarse"]
    for place in ("5", "-1", "training"):
        with pytest.raises(ValueError, match=f"--work='{place}': must be among 0 to 4: inference, coarse; "):
            throughput.chosen([place])


def line(name, **nanoseconds):
    return Made(name=name, events=[Made(name=kernel, duration_ns=time) for kernel, time in nanoseconds.items()])


def test_kernels_of_a_profile():
    """Kernels of all streams count, and neither their enclosing modules nor the host."""
    streams = [line("Stream #13(Compute)", conv=60, add=20), line("Stream #14(Memcpy)", conv=15, copy=5)]
    device = Made(name="/device:GPU:0", lines=[*streams, line("XLA Modules", jit_step=100)])
    host = Made(name="/host:metadata", lines=[line("python", wait=1000)])
    assert throughput.shares([host, device]) == [("conv", 0.75), ("add", 0.2), ("copy", 0.05)]
    assert throughput.shares([host]) == []


def test_inference_and_train_step(monkeypatch):
    """Both run. A train step has the forward pass and a backward pass of about twice its products."""
    recipe, counted = Recipe.from_config(miniature.get_config()), {}
    for work in ("inference, coarse", "training, coarse"):
        with monkeypatch.context() as patched:  # as on a GPU, where XLA counts nothing of a program before compiling
            patched.setattr(pxla.xb, "using_pjrt_c_api", lambda backend: True)
            call, program = throughput.compiled(recipe, work, 2)
        results = [call() for _ in range(3)]
        assert throughput.memory_traffic(program) == program.cost_analysis()["bytes accessed"] > 0
        assert throughput.memory_mib(program) > 0
        counted[work] = throughput.flops_an_image(recipe, work)
    assert 2 < counted["training, coarse"] / counted["inference, coarse"] < 4
    before, _, after = map(float, results)
    assert after < before  # the state goes from step to step; the first one warms up from a rate of 0


def test_flops_of_a_gpu_are_counted_on_the_cpu(monkeypatch):
    """In the form that the program has there: the same products as here, but for gradients that a CPU takes apart."""
    recipe, here = Recipe.from_config(miniature.get_config()), jax.devices()
    counted = throughput.flops_an_image(recipe, "training, coarse")
    monkeypatch.setattr(throughput.jax, "devices", lambda *names: here if names == ("cpu",) else [Made(platform="gpu")])
    there = throughput.flops_an_image(recipe, "training, coarse")
    assert there == pytest.approx(counted, rel=0.05) and there != counted


@pytest.mark.parametrize(
    ("kind", "bandwidth"),
    [
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", None),
        ("TPU v5 lite", 819e9),
        ("TPU v5", 2765e9),
        ("cpu", None),
    ],
)
def test_limits_are_those_of_the_very_device(monkeypatch, kind, bandwidth):
    monkeypatch.setattr(throughput.jax, "devices", lambda: [Made(device_kind=kind)])
    assert (throughput.peak() and throughput.peak().bandwidth) == bandwidth


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_memory_traffic_is_that_of_the_program_text(monkeypatch, platform):
    """What XLA says is accessed is more on a TPU, also on the chip, and less on a GPU, in whose libraries it is -1."""
    text = """ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %n = f32[8,128]{1,0:T(8,128)S(1)} negate(%x)
}"""
    program = Made(as_text=lambda: text, cost_analysis=lambda: {"bytes accessed": 2.0 * 4096})
    monkeypatch.setattr(throughput.jax, "devices", lambda: [Made(platform=platform)])
    assert throughput.memory_traffic(program) == 4096


FIGURES = {"flops": None, "seconds": 0.0, "kernels": False}


def test_a_program_that_fails_is_a_note(monkeypatch, capsys):
    """The other one is timed; a figure that cannot be read costs no row."""

    def broken(*_):
        raise AssertionError("inductor\nfailed  here")

    recipe = Recipe.from_config(miniature.get_config())
    monkeypatch.setattr(throughput, "compiled", lambda *_: (lambda: 0, None))
    monkeypatch.setattr(throughput, "theirs", broken)
    found = throughput.measure(recipe, "inference, coarse", 2, ["ours", "torch"], **FIGURES | {"kernels": True})
    assert found["torch"] == {"note": "AssertionError: inductor failed here"}
    assert found["ours"]["images_per_s"] > 0 and found["ours"]["memory_mib"] is None
    assert "memory_mib: AttributeError" in capsys.readouterr().out
    fails_later = iter([0, 1])
    monkeypatch.setattr(throughput, "theirs", lambda *_: (lambda: 1 / (1 - next(fails_later)), {}))
    found = throughput.measure(recipe, "inference, coarse", 2, ["ours", "torch"], **FIGURES)
    assert {row["note"] for row in found.values()} == {"timed in turn: ZeroDivisionError: division by zero"}
    for text in ("RESOURCE_EXHAUSTED: Out of memory while trying", "CUDA out of memory. Tried to allocate 2 GiB"):
        assert throughput.failure(RuntimeError(text)) == "does not fit"


def rows_of(out):
    return [(row["batch"], row["who"], row.get("note"), row.get("alone")) for row in accelerator.stored_rows(out)]


def test_a_report_keeps_its_rows_and_gets_what_it_lacks(monkeypatch, tmp_path):
    """Each is stored at once. The peer is measured alone where ours leaves it no memory; failures are tried again."""
    recipe, out, calls = Recipe.from_config(miniature.get_config()), str(tmp_path / "r.json"), []

    def measure(recipe, work, batch, who, **_):
        calls.append((batch, *who))
        limit = 32 if who == ["torch"] else 2  # images that PyTorch has memory for
        rows = {"ours": {"ms": 1.0} if batch < 32 else {"note": "does not fit"}}
        rows["torch"] = {"ms": 2.0} if batch <= limit else {"note": "does not fit"}
        if batch == 1 and len(calls) < 8:
            rows["ours"] = {"note": "AssertionError: "}
        if batch == 32 and len(calls) == 4:
            raise SystemExit  # the time is up
        return {name: rows[name] for name in who}

    monkeypatch.setattr(accelerator, "measure", measure)
    monkeypatch.setattr(accelerator, "flops_an_image", lambda *_: None)
    monkeypatch.setattr(accelerator, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(accelerator.peers, "torch_place", lambda: "cpu")
    monkeypatch.setattr(accelerator.peers, "torch_versions", lambda: {"torch": "2"})
    asked = ["inference, coarse"], ["float32"], [1, 2, 8, 32, 64], ["torch"], out, {}
    with pytest.raises(SystemExit):
        accelerator.measure_lacking(recipe, *asked)
    assert calls == [(1, "ours", "torch"), (2, "ours", "torch"), (8, "ours", "torch"), (32, "ours")]
    first = [(1, "ours", "AssertionError: ", None), (1, "torch", None, None)]
    assert rows_of(out) == [*first, (2, "ours", None, None), (2, "torch", None, None), (8, "ours", None, None)]

    calls[:] = [()] * 4
    assert accelerator.measure_lacking(recipe, *asked) == ["inference, coarse, float32, 1, ours: AssertionError: "]
    assert calls[4:] == [(1, "ours"), (8, "torch"), (32, "ours", "torch"), (32, "torch"), (64, "torch")]
    assert accelerator.measure_lacking(recipe, *asked) == []
    assert calls[9:] == [(1, "ours")]
    assert rows_of(out) == [
        *((1, "ours", None, None), (1, "torch", None, None), (2, "ours", None, None), (2, "torch", None, None)),
        *((8, "ours", None, None), (8, "torch", None, True), (32, "ours", "does not fit", None)),
        *((32, "torch", None, True), (64, "torch", "does not fit", True)),
    ]
    stored = json.loads((tmp_path / "r.json").read_text())
    assert stored["environment"]["peer"] == {"torch": "2"} and "memory_limit_mib" in stored["protocol"]
    with pytest.raises(ValueError, match=r"r.json: its rows are of input_size \[64, 64\], this is \[32, 64\]"):
        accelerator.measure_lacking(recipe.override({"input_size": (32, 64)}), *asked[:2], [4], *asked[3:])


def test_batches_are_measured_in_the_order_given(monkeypatch, tmp_path):
    """One that does not fit speaks for larger ones alone. The report is in rising order."""
    calls = []

    def measure(recipe, work, batch, who, **_):
        calls.append(batch)
        return {"ours": {"ms": 1.0} if batch < 64 else {"note": "does not fit"}}

    monkeypatch.setattr(accelerator, "measure", measure)
    monkeypatch.setattr(accelerator, "flops_an_image", lambda *_: None)
    recipe, out = Recipe.from_config(miniature.get_config()), str(tmp_path / "r.json")
    keys = [("training", "float32", batch, "ours") for batch in (32, 64, 1, 128)]
    accelerator.measure_all(recipe, keys, out, {})
    assert calls == [32, 64, 1] and [row[0] for row in rows_of(out)] == [1, 32, 64]
    assert accelerator.lacking(accelerator.stored_rows(out), keys, again=True) == []


def test_a_process_that_ends_is_a_failure(monkeypatch, tmp_path):
    """A fatal error of XLA ends its process; the next work has another one."""
    with pytest.raises(BrokenProcessPool):
        accelerator.apart(os._exit, 1)
    assert accelerator.apart(os.getpid) != os.getpid()

    def ends(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(accelerator, "apart", ends)
    recipe, out = Recipe.from_config(miniature.get_config()), str(tmp_path / "r.json")
    failed = accelerator.measure_lacking(recipe, ["training"], ["float32", "bfloat16"], [1], [], out, {})
    assert failed == [f"training, {dtype}: its process ended" for dtype in ("float32", "bfloat16")]


def test_memory_of_the_gpu_is_shared():
    """JAX's pool grows to nearly the whole card; what the user set stays, and a CPU counts FLOPs."""
    environment = {"JAX_PLATFORMS": "cuda"}
    accelerator.prepare_memory(environment)
    assert environment == {
        "JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_CLIENT_MEM_FRACTION": ".95"
    }  # fmt: skip
    given = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5", "XLA_PYTHON_CLIENT_PREALLOCATE": "true"}
    accelerator.prepare_memory(environment := dict(given))
    assert environment == given


def test_pytorch_without_the_gpu_is_no_peer(monkeypatch):
    version = Made(cuda=None)
    torch = Made(cuda=Made(is_available=lambda: False), __version__="2.0+cpu", version=version)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert peers.torch_place() == "cpu"
    monkeypatch.setattr(peers.jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match="--peer=torch: JAX runs on 'gpu', but torch 2.0.cpu, built for CUDA None"):
        peers.torch_place()
    torch.cuda.is_available = lambda: True
    assert peers.torch_place() == "cuda"


@pytest.mark.parametrize("train", [False, True])
def test_memory_of_pytorch_is_that_of_a_call(monkeypatch, train):
    """Neither of compiling, nor of the first moments of Adam; and what is freed is given back before JAX needs it."""
    torch = MagicMock()
    torch.cuda.is_available.return_value, torch.cuda.max_memory_allocated.return_value = True, 3 * 2**20
    torch.inference_mode.return_value = lambda function: function
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(peers, "_torch_hrnet", MagicMock())
    _, taken = peers.torch_compiled(32, 17, (2, 256, 192, 3), "bfloat16", train)
    order = [name for name, *_ in torch.mock_calls if name.startswith("cuda.") and name != "cuda.is_available"]
    call, reset = "cuda.synchronize", "cuda.reset_peak_memory_stats"
    rest = [call, reset, call] if train else [reset, call, call]
    assert order == [call, *rest, "cuda.max_memory_allocated"] and taken == {"memory_mib": 3}

    torch.reset_mock()
    monkeypatch.setattr(peers.gc, "collect", torch.collected)
    peers.release_torch()
    assert [name for name, *_ in torch.mock_calls] == [
        *("compiler.reset", "collected", "cuda.is_available", "cuda.empty_cache")
    ]


def test_pytorch_gives_its_memory_back_before_ours(monkeypatch):
    order, recipe = [], Recipe.from_config(miniature.get_config())
    monkeypatch.setitem(sys.modules, "torch", Made())
    monkeypatch.setattr(peers, "release_torch", lambda: order.append("release"))
    monkeypatch.setattr(throughput, "ours", lambda *_: (lambda: order.append("ours"), {}))
    throughput.measure(recipe, "training", 2, ["ours"], **FIGURES)
    assert order[:2] == ["release", "ours"]
