"""Unofficial DiffusionPose (arXiv 2306.17074): 2-D human pose estimation by diffusion, in JAX."""

__version__ = "0.1.0"
