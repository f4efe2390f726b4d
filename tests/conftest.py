"""What all tests share: the platform, a cache of compiled programs, small models, and where real data lies."""

import os
import pathlib
import tempfile

import numpy as np
import pytest

# Before the first import of JAX. A test compares with bounds for float32 on the CPU; another platform can be asked for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling dominates these tests: LLVM's own passes are left out (XLA's are not), and a program that one test has
# compiled serves the other tests and the subprocesses too.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
_PROGRAMS = tempfile.TemporaryDirectory(prefix="dpose_jax_tests_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _PROGRAMS.name)

# A whole run in miniature, as overrides of configs/base.py.
MINIATURE = {
    "input_size": (64, 64),
    "data.source": "synthetic",
    "data.workers": 0,
    "data.synthetic.train_images": 8,
    "data.synthetic.val_images": 3,
    "model.backbone": "tiny",
    "model.width": 8,
    "model.head_dim": (8, 16),
    "model.decoder_channels": 8,
    "model.decoder_blocks": 1,
    "diffusion.own_share": 0.5,
    "optim.warmup_steps": 1,
    "optim.ema": 0.9,
    "optim.weight_decay": 1e-4,
    "train.batch_size": 8,
    "train.steps": 4,
    "train.log_every": 2,
    "train.checkpoint_every": 2,
    "sampler.steps": (1, 2),
    "eval.batch_size": 4,
    "eval.pictures": 3,
}


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
    """A function from overrides, {"field.name": value}, to the config of a run that takes seconds."""
    from configs import base

    def build(**overrides):
        config = base.get_config()
        config.update_from_flattened_dict(MINIATURE | {name.replace("__", "."): v for name, v in overrides.items()})
        return config.lock()

    return build


@pytest.fixture(scope="session")
def miniature_flags() -> list[str]:
    """The same run for the command line."""
    return ["--config=configs/base.py", *(f"--config.{name}={value}" for name, value in MINIATURE.items())]


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
    """A function from overrides to a DiffusionPose with every part of HRNet once: it compiles in seconds."""
    from dpose_jax.models.diffusion_pose import build_model
    from dpose_jax.models.hrnet import HRNetSpec

    spec = HRNetSpec(16, modules=(1, 1, 1), blocks=1, stem=8, stem_blocks=1, stem_width=4)

    def build(**overrides):
        config = miniature(input_size=(64, 32), model__width=16, model__head_dim=(8, 8), **overrides)
        return build_model(config).clone(backbone=spec)

    return build


@pytest.fixture(scope="session")
def trained(miniature, tmp_path_factory):
    """The config and the workdir of a miniature run of four steps, with checkpoints of steps 2 and 4."""
    from dpose_jax.training.loop import train

    workdir = str(tmp_path_factory.mktemp("trained"))
    train(miniature(), workdir)
    return miniature(), workdir
