"""Initial variables from shapes alone: nothing is compiled, where `jit(model.init)` takes up to minutes."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.diffusion.process import Schedule
from dpose_jax.models.diffusion_pose import DiffusionPose
from dpose_jax.models.weights.fill import BACKBONE

HEAD_STD = 0.001  # of the last convolution of every heatmap head


def abstract_variables(model: DiffusionPose):
    """Shapes and dtypes of `params` and `batch_stats`, as a tree of jax.ShapeDtypeStruct."""
    joints = model.joint_set.num_joints

    def init(key):
        return model.init(
            key,
            jnp.zeros((1, *model.codec.input_size, 3), jnp.uint8),
            jnp.zeros((1, joints, 2)),
            jnp.zeros((1, joints)),
            jnp.ones((1,), jnp.int32),
            jnp.zeros((1, joints, 2)),
            jnp.zeros((1,)),
            schedule=Schedule(),
            train=False,
        )

    return jax.eval_shape(init, jax.random.key(0))


def initial_variables(model: DiffusionPose, seed: int):
    """Draws every parameter on the host; the same seed gives the same values on every platform.

    Heatmap heads start at N(0, .001), the backbone by its `initial_std`, all other kernels at LeCun's normal over the
    fan-in, scales and variances at 1, biases and means at 0. A parameter's numbers depend on its path and seed alone.

    Returns:
      `params` and `batch_stats` as numpy arrays.

    Raises:
      ValueError: if a leaf is of no known kind.
    """

    def draw(path, leaf):
        names = tuple(key.key for key in path)
        if names[-1] in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        if names[-1] in ("bias", "mean"):
            return np.zeros(leaf.shape, leaf.dtype)
        if names[1] == BACKBONE:
            std = model.backbone.initial_std(names[2:], leaf.shape)
        elif names[-1] == "kernel":
            std = HEAD_STD if names[-2] in ("head", "coarse_head") else np.sqrt(1 / np.prod(leaf.shape[:-1]))
        else:
            std = None
        if std is None:
            raise ValueError(f"no rule to initialise {'/'.join(names)}")
        generator = np.random.Generator(np.random.Philox([seed, zlib.crc32("/".join(names).encode())]))
        return (std * generator.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(model))
