import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from dpose_jax.runtime import flat, sharding
from dpose_jax.training import loop
from dpose_jax.workdir.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).parents[1]

# Each way of sharding: one step of the batch in folder/batch.npz, its figures and gradients into folder/WAY.npz.
# After FSDP's: a checkpoint, restored on two of the devices.
EIGHT = """
import sys
import jax
import numpy as np
import optax
from dpose_jax.runtime import flat, sharding
from dpose_jax.training import loop
from dpose_jax.workdir.checkpoints import Checkpoints
from dpose_jax.recipe import Recipe
from tests import miniature, test_sharding

folder = sys.argv[1]
sharding.MIN_SPLIT = 64
for way in ("replicated", "fsdp"):
    recipe = Recipe.from_config(miniature.get_config()).override({"train.fsdp": way == "fsdp"})
    run = loop.prepare(recipe)
    assert run.mesh.size == 8
    batch = sharding.put_batch(dict(np.load(f"{folder}/batch.npz")), run.mesh)
    assert {s.data.shape[0] for s in batch["image"].addressable_shards} == {1}
    state, metrics = run.train_step(1, run.state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(run.state)), "donated"
    sizes = [(leaf.nbytes, leaf.addressable_shards[0].data.nbytes) for leaf in jax.tree.leaves(state)]
    whole, here = np.sum(sizes, axis=0)
    assert here == whole if way == "replicated" else here < whole / 4, (here, whole)
    np.savez(f"{folder}/{way}.npz", **test_sharding.figures(state, metrics))

with Checkpoints(f"{folder}/eight") as checkpoints:
    checkpoints.save(1, state, run.data)
mesh = sharding.make_mesh(jax.devices()[:2])
places = sharding.state_sharding(mesh, state, fsdp=True)
abstract = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)
with Checkpoints(f"{folder}/eight") as checkpoints:
    two = checkpoints.restore(abstract)
for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(two), strict=True):
    np.testing.assert_array_equal(one, other)
    assert other.sharding.mesh.size == 2
print("restored on two")
"""


def figures(state, metrics):
    """What a step computes, by name: losses, BatchNorm's statistics, and the gradient, as Adam's first moment."""
    named = {f"metric {name}": value for name, value in metrics.items()}
    state = flat.unflatten(state)
    moments = next(part.mu for part in state.opt_state if hasattr(part, "mu"))
    for kind, tree in (("gradient", moments), ("statistics", state.batch_stats)):
        named |= {f"{kind} {jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    return {name.replace("/", "|"): np.asarray(value) for name, value in named.items()}


def test_eight_devices_compute_what_one_does(miniature, tmp_path):
    """Loss, gradient and batch normalisation are those of the global batch, replicated or FSDP; checkpoints move.

    Only the order of sums differs.
    """
    run = loop.prepare(miniature())
    batch = run.next_batch()
    run.data.close()
    np.savez(tmp_path / "batch.npz", **batch)
    state, metrics = run.train_step(1, run.state, sharding.put_batch(batch, run.mesh))
    expected = figures(state, metrics)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    out = subprocess.run(
        [sys.executable, "-c", EIGHT, str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0 and "restored on two" in out.stdout, out.stderr
    for way in ("replicated", "fsdp"):
        found = np.load(tmp_path / f"{way}.npz")
        assert set(found) == set(expected)
        for name, value in expected.items():
            # The floor is for gradients that are zero but for rounding, such as those of attention's key biases.
            atol = max(1e-4 * np.abs(value).max(), 1e-8)
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=atol, err_msg=name)

    with Checkpoints(str(tmp_path / "eight")) as checkpoints:
        restored = checkpoints.restore(state)
    for name, value in figures(restored, {}).items():
        np.testing.assert_array_equal(value, np.load(tmp_path / "fsdp.npz")[name])


def test_parts_of_a_batch_add_up_to_it(miniature):
    """Loss and gradient of two parts of four are those of the eight, where BatchNorm does not see the batch."""
    frozen = {"model__batch_norm": "frozen", "train__batch_size": 8}
    frozen |= {"model__spatial_attention": False, "model__channel_attention": False}  # long to compile, nothing added
    found = []
    for parts in (1, 2):
        run = loop.prepare(miniature(**frozen, train__accumulate=parts))
        state, metrics = run.train_step(1, run.state, sharding.put_batch(run.next_batch(), run.mesh))
        run.data.close()
        found.append(figures(state, metrics))
    whole, added = found
    for name, value in whole.items():
        atol = max(1e-4 * np.abs(value).max(), 1e-8)  # as above
        np.testing.assert_allclose(added[name], value, rtol=1e-4, atol=atol, err_msg=name)


def test_fsdp_splits_the_longest_axis_that_the_devices_divide(monkeypatch):
    mesh = jax.sharding.AbstractMesh((4,), (sharding.DATA_AXIS,))
    shapes = {"kernel": (3, 3, 64, 128), "odd": (3, 3, 65, 127), "short": (64,), "long": (8192,), "wide": (5000, 64)}
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    split = {name: tuple(place.spec) for name, place in sharding.state_sharding(mesh, tree, fsdp=True).items()}
    axis = sharding.DATA_AXIS
    assert split == {"kernel": (None, None, None, axis), "odd": (), "short": (), "long": (axis,), "wide": (axis,)}
    assert all(tuple(place.spec) == () for place in sharding.state_sharding(mesh, tree, fsdp=False).values())


def test_batch_that_the_devices_do_not_divide():
    mesh = types.SimpleNamespace(size=8)
    sharding.check_batch_size("train.batch_size", 16, mesh)
    for size in (0, 12, -8):
        with pytest.raises(ValueError, match=rf"train\.batch_size={size}: .*8"):
            sharding.check_batch_size("train.batch_size", size, mesh)
    sharding.check_batch_size("train.batch_size", 48, mesh, 3)
    with pytest.raises(ValueError, match=r"train\.batch_size=16: .*8 x train\.accumulate, 3"):
        sharding.check_batch_size("train.batch_size", 16, mesh, 3)
    sharding.check_batch_size("train.batch_size", 32, mesh, 2, 2)
    with pytest.raises(ValueError, match=r"train\.batch_size=8: must .* devices, 8 x diffusion\.every, 2"):
        sharding.check_batch_size("train.batch_size", 8, mesh, 1, 2)


TWO = """
import jax
import jax.numpy as jnp
import numpy as np
from dpose_jax.runtime import flat, sharding

mesh, rows = sharding.make_mesh(), np.arange(24, dtype=np.float32).reshape(8, 3)
assert mesh.size == 2
split = sharding.put_batch({"rows": rows}, mesh)["rows"]
place = sharding.batch_sharding(mesh)
take = jax.jit(lambda x: sharding.each_nth(x, 2), in_shardings=place)
found = take(split)
for shard, expected in zip(found.addressable_shards, (rows[[0, 2]], rows[[4, 6]])):
    np.testing.assert_array_equal(shard.data, expected)
slope = jax.jit(jax.grad(lambda x: jnp.sum(sharding.each_nth(x, 2) ** 2)), in_shardings=place, out_shardings=place)
np.testing.assert_array_equal(slope(split), np.where(np.arange(8)[:, None] % 2, 0, 2 * rows))
for compiled in (take, slope):
    text = compiled.lower(split).compile().as_text()
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce") if name in text]
print("no row moved")
"""


def test_each_device_keeps_its_own_share_of_the_rows():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", TWO], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0 and "no row moved" in out.stdout, out.stderr
