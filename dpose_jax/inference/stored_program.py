"""Programs that are kept traced: a start that is not the first of its kind does not trace the network again.

JAX's cache of compiled programs is found by a program's text, for which every start traces the network: half of the
time of a short prediction. Here the text itself is kept, by `jax.export`, and found by the code of dpose_jax.
"""

import hashlib
import os
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from jax import export

from dpose_jax.workdir.once import code, programs_folder


class StoredProgram:
    """`jax.jit(function)`, whose text is kept beside the compiled programs, on one CPU; elsewhere it is traced."""

    def __init__(self, function: Callable, *inputs: str):
        """`inputs` are all that the function depends on beside its arguments and the code of dpose_jax."""
        self._jitted: Any = jax.jit(function)
        self._inputs, self._programs = inputs, dict[str, Callable]()

    def __call__(self, *arguments) -> Any:
        """The function's result."""
        folder = programs_folder()
        if folder is None or jax.default_backend() != "cpu" or jax.device_count() > 1:
            return self._jitted(*arguments)
        shapes = repr(jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), arguments))
        if shapes not in self._programs:
            settings = repr(sorted(jax.config.values.items()))
            digest = hashlib.sha256("\0".join([code(), settings, shapes, *self._inputs]).encode()).hexdigest()
            self._programs[shapes] = self._load(folder / f"traced-{digest}", arguments)
        return self._programs[shapes](*arguments)

    def eval_shape(self, *arguments) -> Any:
        """Shapes and dtypes of the result, as `jax.jit` has it."""
        return self._jitted.eval_shape(*arguments)

    def _cache_size(self) -> int:
        """How many programs there are, as `jax.jit` has it."""
        return len(self._programs) + self._jitted._cache_size()

    def _load(self, path: epath.Path, arguments: tuple) -> Callable:
        # What a damaged file makes JAX raise is open-ended; then the network is traced anew.
        try:
            return jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
        except Exception:
            traced = export.export(self._jitted)(*arguments)
        try:
            part = path.with_name(f"{path.name}.{os.getpid()}")
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(bytes(traced.serialize()))
            part.replace(path)
        except OSError:
            pass  # a folder that cannot be written to
        return jax.jit(traced.call)
