import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from dpose_jax import parallel
from dpose_jax.training import loop

ROOT = pathlib.Path(__file__).parents[1]

EIGHT = """
import json, sys
import numpy as np
from dpose_jax import parallel
from dpose_jax.training import loop
from tests import miniature
from tests.test_parallel import variance_sum
run = loop.prepare(miniature.get_config())
assert run.mesh.size == 8
batch = parallel.put_batch(dict(np.load(sys.argv[1])), run.mesh)
assert {s.data.shape[0] for s in batch["image"].addressable_shards} == {1}
state, metrics = run.step(run.state, batch)
print(json.dumps({name: float(value) for name, value in metrics.items()} | {"variance": variance_sum(state)}))
"""


def variance_sum(state):
    """Of a running variance over 2 x 2 pixels of 8 examples: n / (n - 1) is 1.03 of all, 1.33 of each alone."""
    return float(state.batch_stats["hrnet"]["stage4_module0"]["branch3_block0"]["conv2"]["bn"]["var"].sum())


def test_eight_devices_compute_what_one_does(miniature, trained, tmp_path):
    """Batch normalisation and the loss are those of the global batch; only the order of sums differs."""
    run = loop.prepare(miniature())
    batch = run.read()
    run.data.close()
    np.savez(tmp_path / "batch.npz", **batch)
    state, metrics = run.step(run.state, parallel.put_batch(batch, run.mesh))
    metrics = dict(metrics, variance=variance_sum(state))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    out = subprocess.run(
        [sys.executable, "-c", EIGHT, str(tmp_path / "batch.npz")],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    for name, value in json.loads(out.stdout.splitlines()[-1]).items():
        assert value == pytest.approx(float(metrics[name]), rel=1e-4), name


def test_batch_that_the_devices_do_not_divide():
    mesh = types.SimpleNamespace(size=8)
    parallel.check_batch_size("train.batch_size", 16, mesh)
    for size in (0, 12, -8):
        with pytest.raises(ValueError, match=rf"train\.batch_size={size}: .*8"):
            parallel.check_batch_size("train.batch_size", size, mesh)
