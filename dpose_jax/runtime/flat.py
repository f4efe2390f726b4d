"""Parameters as few long vectors, which a step on a CPU updates instead of a thousand short arrays.

XLA compiles an update, and an average, for each array: 41% of all fusions in a step of HRNet-W32, each of which costs
milliseconds at every start (docs/performance.md). Models and checkpoints keep their trees.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the arrays of a tree lie."""

    tree: Any  # its PyTreeDef
    shapes: tuple[tuple[int, ...], ...]

    def __hash__(self) -> int:
        return len(self.shapes)  # JAX hashes it at every call of a step


@flax.struct.dataclass
class Flat:
    """A tree of float32 arrays, laid end to end in the tree's order; a node of JAX's trees with two leaves."""

    kernels: Any  # (N,), of arrays of two axes or more, which weight decay shrinks
    others: Any  # (M,)
    layout: Layout = flax.struct.field(pytree_node=False)

    def arrays(self) -> Any:
        """The tree. While it is traced these are slices, else copies on the default device."""
        if isinstance(self.kernels, jax.core.Tracer):
            return self._cut(self.others, self.kernels)
        # Copies, since a step that the vectors are donated to would overwrite what shares their memory.
        return jax.device_put(self._cut(*map(np.array, (self.others, self.kernels))))

    def views(self) -> Any:
        """The tree, of NumPy arrays that share the memory of the vectors; waits until those are computed."""
        return self._cut(*jax.device_get((self.others, self.kernels)))

    def _cut(self, others: Any, kernels: Any) -> Any:
        vectors, leaves, begin = (others, kernels), [], [0, 0]
        for shape in self.layout.shapes:
            which, size = len(shape) > 1, math.prod(shape)
            leaves.append(vectors[which][begin[which] : begin[which] + size].reshape(shape))
            begin[which] += size
        return self.layout.tree.unflatten(leaves)

    def like(self, tree: Any) -> "Flat":
        """Another tree of this layout."""
        return _flat(self.layout.tree.flatten_up_to(tree), self.layout)


def flatten(modules: Mapping[str, Any]) -> dict[str, Flat]:
    """The arrays of each module, whose updates may differ, as a Flat."""
    return {name: _flat(*_layout(tree)) for name, tree in modules.items()}


def flatten_like(template: Any, tree: Any) -> Any:
    """`tree` in the form of `template`: a Flat where that has one."""
    if not any(map(_is_flat, jax.tree.leaves(template, is_leaf=_is_flat))):
        return tree
    return jax.tree.map(lambda one, its: one.like(its) if _is_flat(one) else its, template, tree, is_leaf=_is_flat)


def unflatten(tree: Any) -> Any:
    """`tree` with its arrays for each Flat in it."""
    return jax.tree.map(lambda one: one.arrays() if _is_flat(one) else one, tree, is_leaf=_is_flat)


def views(tree: Any) -> Any:
    """`tree` with its `Flat.views` for each Flat in it."""
    return jax.tree.map(lambda one: one.views() if _is_flat(one) else one, tree, is_leaf=_is_flat)


def kernels(tree: Any) -> Any:
    """A tree of bool, True for arrays of two axes or more."""

    def mark(one: Any) -> Any:
        return one.replace(kernels=True, others=False) if _is_flat(one) else one.ndim > 1

    return jax.tree.map(mark, tree, is_leaf=_is_flat)


def _is_flat(one: Any) -> bool:
    return isinstance(one, Flat)


def _layout(tree: Any) -> tuple[list, Layout]:
    leaves, structure = jax.tree.flatten(tree)
    return leaves, Layout(structure, tuple(leaf.shape for leaf in leaves))


def _flat(leaves: list, layout: Layout) -> Flat:
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    leaves, library = (leaves, jnp) if traced else (jax.device_get(leaves), np)

    def joined(kernels: bool) -> Any:
        its = [leaf.reshape(-1) for leaf in leaves if (leaf.ndim > 1) == kernels]
        return library.concatenate(its) if its else library.zeros(0, np.float32)

    vectors = joined(True), joined(False)
    matrices, rest = vectors if traced else jax.device_put(vectors)
    return Flat(matrices, rest, layout)
