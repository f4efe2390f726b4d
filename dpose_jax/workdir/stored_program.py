"""Programs that are kept traced: a start that is not the first of its kind does not trace the network again.

JAX's cache of compiled programs is found by a program's text, for which every start traces the network: half of the
time of a short prediction, and of the start of a training. Here the text itself is kept, by `jax.export`, and found by
the code of dpose_jax.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from jax import export

from dpose_jax.workdir.once import code, programs_folder

KEPT_DAYS = 30


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
        folder = programs_folder()
        if folder is None or jax.default_backend() != "cpu" or jax.device_count() > 1:
            return self._jitted
        leaves, form = jax.tree.flatten(arguments)
        shapes = form, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if shapes not in self._programs:
            settings, shown = (repr(values) for values in (sorted(jax.config.values.items()), shapes))
            digest = hashlib.sha256("\0".join([code(), settings, shown, *self._inputs]).encode()).hexdigest()
            self._programs[shapes] = self._load(folder / f"traced-{digest}", arguments)
        return self._programs[shapes]

    def eval_shape(self, *arguments) -> Any:
        """Shapes and dtypes of the result, as `jax.jit` has it."""
        return self._jitted.eval_shape(*arguments)

    def _cache_size(self) -> int:
        """How many programs there are, as `jax.jit` has it."""
        return len(self._programs) + self._jitted._cache_size()

    def _load(self, path: epath.Path, arguments: tuple) -> Callable:
        # What a damaged file makes JAX raise is open-ended; then the network is traced anew.
        try:
            program = jax.jit(export.deserialize(bytearray(path.read_bytes())).call, **self._options)
            with contextlib.suppress(OSError):
                os.utime(path)
            return program
        except Exception:
            traced = export.export(self._jitted)(*arguments)
        try:
            _forget_unused(path.parent)
            part = path.with_name(f"{path.name}.{os.getpid()}")
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(bytes(traced.serialize()))
            part.replace(path)
        except OSError:
            pass  # a folder that cannot be written to
        return jax.jit(traced.call, **self._options)


def _forget_unused(folder: epath.Path) -> None:
    """Deletes programs that nothing has read for KEPT_DAYS: those of older code are never read again."""
    for path in folder.glob("traced-*"):
        if time.time() - path.stat().mtime > KEPT_DAYS * 24 * 3600:
            path.unlink()


def is_ours(*parts: Any) -> bool:
    """Whether the code of this package, by which a stored program is found, has all of `parts`."""
    return all(getattr(part, "__module__", "").partition(".")[0] == "dpose_jax" for part in parts)
