"""Initial variables from shapes alone: nothing is compiled, where `jit(model.init)` takes up to minutes."""

import concurrent.futures
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.diffusion.process import Schedule
from dpose_jax.models.diffusion_pose import DiffusionPose
from dpose_jax.models.weights.fill import BACKBONE

HEAD_STD = 0.001  # of the last convolution of every heatmap head


def abstract_inputs(model: DiffusionPose) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes and dtypes of one image, its joints, their flags, and t."""
    joints = model.joint_set.num_joints
    shapes = (1, *model.codec.input_size, 3), (1, joints, 2), (1, joints), (1,)
    return tuple(map(jax.ShapeDtypeStruct, shapes, (jnp.uint8, jnp.float32, jnp.float32, jnp.int32)))


def abstract_variables(model: DiffusionPose):
    """Shapes and dtypes of `params` and `batch_stats`, as a tree of jax.ShapeDtypeStruct."""

    def init(images, joints, visible, t):
        inputs = images, joints, visible, t, joints, None  # the noise has the joints' shape
        return model.init(jax.random.key(0), *inputs, schedule=Schedule(), train=False)

    return jax.eval_shape(init, *abstract_inputs(model))


def initial_variables(model: DiffusionPose, seed: int, shapes: Any = None):
    """`params` and `batch_stats` as numpy arrays, drawn on the host; a seed gives the same values on every platform.

    `shapes` are those of `abstract_variables`, which is called if they are None. Heatmap heads start at N(0, .001), the
    backbone by its `initial_std`, other kernels at LeCun's normal over the fan-in, scales and variances at 1, biases
    and means at 0, each by its path and seed alone. Raises ValueError if a leaf is of no known kind.
    """

    def draw(path, leaf):
        names, std = tuple(key.key for key in path), None
        if names[-1] in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        if names[-1] in ("bias", "mean"):
            return np.zeros(leaf.shape, leaf.dtype)
        if names[1] == BACKBONE:
            std = model.backbone.initial_std(names[2:], leaf.shape)
        elif names[-1] == "kernel":
            std = HEAD_STD if names[-2] in ("head", "coarse_head") else np.sqrt(1 / np.prod(leaf.shape[:-1]))
        if std is None:
            raise ValueError(f"no rule to initialise {'/'.join(names)}")
        generator = np.random.Generator(np.random.Philox([seed, zlib.crc32("/".join(names).encode())]))
        return (std * generator.standard_normal(leaf.shape)).astype(leaf.dtype)

    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract_variables(model) if shapes is None else shapes)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return jax.tree.unflatten(tree, pool.map(draw, *zip(*leaves, strict=True)))
