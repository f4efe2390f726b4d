"""The table of one accelerator: what is timed, what it is compared with, which kernels are named."""

from types import SimpleNamespace as Made

import miniature
import pytest

from benchmarks import throughput
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


def test_inference_and_train_step():
    """Both are timed. A train step has the forward pass and a backward pass of about twice its products."""
    recipe, found = Recipe.from_config(miniature.get_config()), {}
    for work in ("inference, coarse", "training, coarse"):
        call, program, flops = throughput.ours(recipe, work, 2)
        results = [call() for _ in range(3)]
        assert throughput.memory_traffic(program) == program.cost_analysis()["bytes accessed"] > 0 and flops > 0
        found[work] = flops, results
    assert 2 < found["training, coarse"][0] / found["inference, coarse"][0] < 4
    before, _, after = map(float, found["training, coarse"][1])
    assert after < before  # the state goes from step to step; the first one warms up from a rate of 0


def test_memory_traffic_of_a_tpu_is_that_of_its_hbm(monkeypatch):
    """What XLA says is accessed is more, also on the chip."""
    text = """ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %n = f32[8,128]{1,0:T(8,128)S(1)} negate(%x)
}"""
    program = Made(as_text=lambda: text, cost_analysis=lambda: {"bytes accessed": 2.0 * 4096})
    for platform, moved in (("tpu", 4096), ("gpu", 2 * 4096)):
        monkeypatch.setattr(throughput.jax, "devices", lambda platform=platform: [Made(platform=platform)])
        assert throughput.memory_traffic(program) == moved
