"""What all tests share: the platform, a cache of compiled programs, small models, and where real data lies."""

import importlib.metadata
import os
import pathlib
import tempfile

import numpy as np
import pytest

# Before the first import of JAX. A test compares with bounds for float32 on the CPU; another platform can be asked for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling dominates these tests: LLVM's own passes are left out (XLA's are not), and a program that one test has
# compiled serves the other tests and the subprocesses too; also the many small ones, 2 s of each start of a run.
_QUICK = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA ends a process that names a flag it lacks
    # The emitters of before take two fifths of the time to compile a training step: 7 of 17 s of CPU.
    _QUICK += " --xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true"
os.environ.setdefault("XLA_FLAGS", _QUICK)
_PROGRAMS = tempfile.TemporaryDirectory(prefix="dpose_jax_tests_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _PROGRAMS.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

from dpose_jax.runtime import cpu  # noqa: E402

# What the entry points ask of XLA, so that their programs and those of the tests are the same.
cpu.fuse_elementwise()

# Files that take minutes come first: a worker that began one last would be left with it while the other idles. The
# first needs no program of `trained`, which the second compiles meanwhile for all others.
LONGEST = ("test_pose_sampler.py", "test_end_to_end.py", "test_study.py", "test_multihost.py", "test_resume.py")
LONGEST += ("test_predictor.py", "test_sharding.py", "test_benchmark_steps.py", "test_export.py")


def pytest_collection_modifyitems(items):
    """Starts with the files of LONGEST."""
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))


@pytest.fixture(scope="session")
def data_root() -> pathlib.Path:
    """The folder that DPOSE_DATA names, which holds coco/, lspet/ and samples/; skips without the variable."""
    root = os.environ.get("DPOSE_DATA")
    if not root:
        pytest.skip("DPOSE_DATA is not set: it names the folder that holds coco/, lspet/ and samples/")
    path = pathlib.Path(root)
    if not path.is_dir():
        pytest.fail(f"DPOSE_DATA={root!r}: no such folder")
    return path


@pytest.fixture(scope="session")
def miniature():
    """A function from overrides, field__name=value, to the recipe of tests/miniature.py."""
    from miniature import get_config

    from dpose_jax.recipe import Recipe

    def build(**overrides):
        recipe = Recipe.from_config(get_config())
        return recipe.override({name.replace("__", "."): value for name, value in overrides.items()})

    return build


@pytest.fixture(scope="session")
def random_tree():
    """A function from a tree of shapes and a seed to variables, none of which is 0 or 1 by chance of its start.

    Kernels keep the size of LeCun's normal, so that a network's outputs neither vanish nor overflow.
    """
    import jax

    def draw(shapes, seed=0):
        rng = np.random.default_rng(seed)

        def leaf(path, like):
            noise = rng.standard_normal(like.shape).astype(np.float32)
            if path[-1].key == "kernel":
                return noise / np.sqrt(np.prod(like.shape[:-1]), dtype=np.float32)
            return np.abs(1 + 0.2 * noise) if path[-1].key in ("scale", "var") else 0.2 * noise

        return jax.tree_util.tree_map_with_path(leaf, shapes)

    return draw


@pytest.fixture(scope="session")
def small_model(miniature):
    """A function from overrides to the model of a miniature recipe, with all of HRNet, 64 x 32 input and two heads."""
    from dpose_jax.models.diffusion_pose import build_model

    def build(**overrides):
        fields = {"model__backbone": "miniature", "model__width": 16, "model__head_dim": (8, 8)} | overrides
        return build_model(miniature(input_size=(64, 32), **fields))

    return build


@pytest.fixture(scope="session")
def trained(miniature, tmp_path_factory):
    """The recipe and the workdir of a miniature run of four steps, with checkpoints of steps 2 and 4."""
    from dpose_jax.training.loop import train

    workdir = str(tmp_path_factory.mktemp("trained"))
    train(miniature(), workdir)
    return miniature(), workdir
