"""Programs that are kept traced: a start that is not the first of its kind does not trace the network again.

JAX's cache of compiled programs is found by a program's text, for which every start traces the network: half of the
time of a short prediction, and of the start of a training. Here the text itself is kept, by `jax.export`, and found by
the code of dpose_jax.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import export

from dpose_jax.workdir.once import kept, programs_folder


class StoredProgram:
    """`jax.jit(function)`, whose text is kept beside the compiled programs, on one CPU; elsewhere it is traced."""

    def __init__(self, function: Callable, *inputs: str, **options: Any):
        """`inputs` are all that the function depends on beside its arguments and the code of dpose_jax.

        `options` are those of `jax.jit`.
        """
        self._jitted: Any = jax.jit(function, **options)
        self._options = options
        self._inputs, self._programs = inputs, dict[tuple, Callable]()

    def __call__(self, *arguments) -> Any:
        """The function's result."""
        return self._program(arguments)(*arguments)

    def lower(self, *arguments) -> Any:
        """The program for these arguments, as `jax.jit` has it."""
        return self._program(arguments).lower(*arguments)

    def _program(self, arguments: tuple) -> Any:
        if programs_folder() is None or jax.default_backend() != "cpu" or jax.device_count() > 1:
            return self._jitted
        leaves, form = jax.tree.flatten(arguments)
        shapes = form, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if shapes not in self._programs:
            settings, shown = (repr(values) for values in (sorted(jax.config.values.items()), shapes))
            self._programs[shapes] = kept(
                "traced",
                (settings, shown, *self._inputs),
                lambda: bytes(export.export(self._jitted)(*arguments).serialize()),
                lambda text: jax.jit(export.deserialize(bytearray(text)).call, **self._options),
            )
        return self._programs[shapes]

    def eval_shape(self, *arguments) -> Any:
        """Shapes and dtypes of the result, as `jax.jit` has it."""
        return self._jitted.eval_shape(*arguments)

    def _cache_size(self) -> int:
        """How many programs there are, as `jax.jit` has it."""
        return len(self._programs) + self._jitted._cache_size()
