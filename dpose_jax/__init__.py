"""Unofficial DiffusionPose (arXiv 2306.17074): 2-D human pose estimation by diffusion, in JAX.

`from dpose_jax import Predictor` adds a flag for XLA:CPU to XLA_FLAGS, unless that has it: see `runtime.cpu`.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # On demand: `import dpose_jax` alone, as in data workers, should load neither JAX nor a network.
    if name == "Predictor":
        from dpose_jax.inference.predictor import Predictor
        from dpose_jax.runtime import cpu

        cpu.fuse_elementwise()
        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
