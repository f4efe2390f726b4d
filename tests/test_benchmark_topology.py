"""Compiled for a TPU slice or for CUDA without either: what is read from the compiler, and how it is asked."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from benchmarks import xla_cost
from benchmarks.xla_cost import CHIPS, DoesNotFitError, collectives, largest_batch, parse_topology, shape_bytes
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.runtime import sharding

ROOT = pathlib.Path(__file__).parents[1]
KEYS = {"devices", "batch_per_device", "hbm_bytes_per_device", "hbm_limit_bytes", "flops_per_device"}
KEYS |= {"bytes_accessed_per_device", "hbm_traffic_per_device", "collectives", "compile_seconds"}


def command(*arguments, **environment):
    given = [sys.executable, "benchmark.py", "topology", "--config=tests/miniature.py", *arguments]
    return subprocess.run(given, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True)


def test_topologies_are_named():
    assert parse_topology("v5e:16x16") == (CHIPS["v5e"], (16, 16))
    assert parse_topology("v5p:4x8x8")[1] == (4, 8, 8)
    for name in ("v5e", "v5e:3x3", "v5p:4x4", "v9:2x2", "4x4", ""):
        with pytest.raises(ValueError, match=r"must be KIND:SHAPE, one of v5e: 1x1, .*16x16; v5p: .*; v6e: "):
            parse_topology(name)


TEXT = """
  %all-reduce.1 = (f32[32,16]{1,0:T(8,128)}, bf16[8]{0}) all-reduce(%a, %b), channel_id=1
  %start = (f32[4]{0}, f32[32]{0}) all-gather-start(%c), channel_id=2
  ROOT %end = f32[32]{0:T(128)S(1)} all-gather-done(%start)
  %all-reduce-start.2 = f32[] all-reduce-start(%d), channel_id=3
  %done.3 = f32[] all-reduce-done(%all-reduce-start.2)
  %fusion = f32[8]{0} fusion(%all-reduce.1), kind=kLoop
"""


def test_collectives_are_counted_where_they_end():
    assert collectives(TEXT.splitlines()) == {
        "all-reduce": {"count": 2, "bytes": 32 * 16 * 4 + 8 * 2 + 4},
        "all-gather": {"count": 1, "bytes": 32 * 4},
    }
    assert shape_bytes("(s8[3,2]{1,0}, pred[5], u32[], f64[2])") == 6 + 5 + 4 + 16


def kinked(batch):
    """Memory that grows four times as fast up to 32 examples, as where they do not fill the lanes."""
    return 1 + 4 * min(batch, 32) + max(batch - 32, 0)


SHAPES = {
    "line": lambda batch: 1 + batch,
    "bent up": lambda batch: 1 + batch + 0.001 * batch**2,
    "bent down": lambda batch: 1 + batch - 0.0001 * batch**2,
    "kinked": kinked,
    "flat to 128": lambda batch: 100 + max(batch - 128, 0),
}


@pytest.mark.parametrize("need", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("limit", [8.5, 30, 128.5, 129, 300, 1100, 2400, 99999])
@pytest.mark.parametrize("parts", [1, 3])
def test_largest_batch_is_the_largest(limit, need, parts):
    """Whatever the shape of memory over the batch, and nothing larger than what does not fit is tried."""
    tried = []

    def train(batch):
        tried.append(batch)
        if need(batch / parts) > limit:  # a device holds one part at a time
            raise DoesNotFitError("too much")
        return {"hbm_bytes_per_device": need(batch / parts), "batch_per_device": batch}

    fitting = [batch for batch in xla_cost.BATCHES if need(batch) <= limit]
    if not fitting:
        with pytest.raises(DoesNotFitError):
            largest_batch(train, parts)
        return
    assert largest_batch(train, parts)["batch_per_device"] == parts * max(fitting)
    assert tried == [parts * batch for batch in xla_cost.BATCHES[: len(tried)]]


def test_batches_from_128_fill_the_lanes():
    assert all(batch % 8 == 0 and (batch < 128 or batch % 128 == 0) for batch in xla_cost.BATCHES)
    assert list(xla_cost.BATCHES) == sorted(set(xla_cost.BATCHES))


def test_bad_arguments_come_before_the_compiler(tmp_path):
    done = command("--topology=v5e:5x5", f"--out={tmp_path}/f.json")
    assert done.returncode == 1 and done.stderr.startswith(
        "error: --topology='v5e:5x5': must be KIND:SHAPE, one of v5e"
    )
    assert "Traceback" not in done.stderr


def test_a_slice_compiles_without_chips(miniature, tmp_path):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[topology]'")
    out = tmp_path / "f.json"
    done = command("--topology=v5e:2x2", "--batch=8", f"--out={out}")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert KEYS <= set(found) and KEYS <= set(found["sampler"])
    assert (found["devices"], found["batch_per_device"], found["hbm_limit_bytes"]) == (4, 8, 16 * 2**30)
    assert found["hbm_arguments_bytes"] < found["hbm_bytes_per_device"] < found["hbm_limit_bytes"]
    assert found["flops_per_device"] > 0
    assert found["hbm_arguments_bytes"] < found["hbm_traffic_per_device"] < found["bytes_accessed_per_device"]
    # The gradient at least is summed over the devices; two fifths, the unused low branches, have none.
    parameters = abstract_variables(build_model(miniature()))["params"]
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(parameters))
    assert 0.5 * size < found["collectives"]["all-reduce"]["bytes"] < 2 * size
    assert not found["sampler"]["collectives"]


@pytest.mark.parametrize("program", [xla_cost.train_program, xla_cost.sampler_program])
def test_programs_lower_for_cuda_without_a_gpu(program, miniature):
    one = program(miniature(), sharding.make_mesh(), 2)
    exported = jax.export.export(one.jitted, platforms=["cuda"])(*one.arguments)
    assert exported.platforms == ("cuda",) and "stablehlo.convolution" in exported.mlir_module()
