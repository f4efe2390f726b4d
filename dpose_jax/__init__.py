"""Unofficial DiffusionPose (arXiv 2306.17074): 2-D human pose estimation by diffusion, in JAX."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # On demand: `import dpose_jax` alone, as in data workers, should load neither JAX nor a network.
    if name == "Predictor":
        from dpose_jax.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
