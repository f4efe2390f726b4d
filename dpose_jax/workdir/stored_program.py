"""Programs that are kept compiled: a start that is not the first of its kind neither traces nor lowers the network.

JAX's cache of compiled programs is found by a program's text, for which every start traces the network: half of the
time of a short prediction, and seconds of the start of a training. Here the compiled program is found by the code of
dpose_jax, so that it is loaded before anything else of a training is known.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import platform
import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jaxlib
from etils import epath
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from dpose_jax.workdir.once import digest, kept, programs_folder

CPUS = pathlib.Path("/proc/cpuinfo")


class StoredProgram:
    """`jax.jit(function)`, whose compiled programs are kept beside JAX's own, on one CPU; elsewhere just that."""

    def __init__(self, function: Callable, *inputs: str | None, **options: Any):
        """`inputs` are all that the function depends on beside its arguments and the code of dpose_jax.

        A None among them: these are not known, and nothing is kept. `options` are those of `jax.jit`.
        """
        self._function, self._options = function, options
        self._inputs, self._programs = inputs, dict[tuple, Any]()
        self._loading = dict[str, concurrent.futures.Future]()

    @functools.cached_property
    def _jitted(self) -> Any:
        return jax.jit(self._function, **self._options)

    def start_loading(self) -> None:
        """Loads meanwhile, in a thread, what is stored of it for arguments of any shapes."""
        folder = self._folder()
        with contextlib.suppress(Exception):  # as of `kept`, of a folder or bucket that cannot be read
            for path in [] if folder is None else folder.glob(f"{self._name()}-*"):
                pool = concurrent.futures.ThreadPoolExecutor(1)
                self._loading[path.name] = pool.submit(_load_named, path)
                pool.shutdown(wait=False)

    def __call__(self, *arguments) -> Any:
        """The function's result."""
        return self._program(arguments)(*arguments)

    def lower(self, *arguments) -> Any:
        """What `jax.jit` has, of which `compile` alone is needed: the program for these arguments."""
        if self._folder() is None:
            return self._jitted.lower(*arguments)
        return _Lowered(lambda: self._program(arguments))

    def eval_shape(self, *arguments) -> Any:
        """Shapes and dtypes of the result, as `jax.jit` has it."""
        return self._jitted.eval_shape(*arguments)

    def _program(self, arguments: tuple) -> Any:
        if self._folder() is None:
            return self._jitted
        leaves, form = jax.tree.flatten(arguments)
        shapes = form, *((leaf.shape, leaf.dtype) for leaf in leaves)
        settings = _settings()  # which a `with` may change between two calls
        if (settings, shapes) not in self._programs:
            self._programs[settings, shapes] = self._kept(arguments, _digest(repr(shapes)))
        return self._programs[settings, shapes]

    def _kept(self, arguments: tuple, shapes: str) -> Any:
        lowered = functools.cache(lambda: self._jitted.lower(*arguments))

        def named() -> str:
            """By the text: other code often gives the same."""
            facts = lowered().in_tree, lowered().out_tree, _settings(), _machine()
            return f"compiled-{_digest(lowered().as_text() + repr(facts))}"

        def load(content: bytes) -> Any:
            return self._loading[found].result() if found in self._loading else _load(content)

        found = f"{self._name()}-{shapes}"
        return kept(kept(found, named, str.encode, _name_in), lambda: _compile(lowered()), _store, load)

    def _folder(self) -> epath.Path | None:
        alone = jax.default_backend() == "cpu" and jax.device_count() == 1
        return programs_folder() if alone and None not in self._inputs else None

    def _name(self) -> str:
        return f"program-{digest(_settings(), _machine(), *map(str, self._inputs))}"

    def _cache_size(self) -> int:
        """How many programs there are, as `jax.jit` has it."""
        return len(self._programs) + self._jitted._cache_size()


def _settings() -> str:
    """JAX's, of this thread, but for those that guard calls and change no program."""
    return repr(sorted((name, value) for name, value in jax.config.values.items() if "transfer_guard" not in name))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _Lowered(NamedTuple):
    compile: Callable[[], Any]


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Without JAX's cache: XLA:CPU stores nothing that runs of a program which it has loaded (jaxlib 0.10)."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        return lowered.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def _store(program: jax.stages.Compiled) -> bytes:
    return zlib.compress(pickle.dumps(serialize_executable.serialize(program)), level=1)


def _load(content: bytes) -> jax.stages.Compiled:
    return serialize_executable.deserialize_and_load(*pickle.loads(zlib.decompress(content)))


def _name_in(content: bytes) -> str:
    if not re.fullmatch(rb"compiled-[0-9a-f]{64}", content):
        raise ValueError("damaged")
    return content.decode()


def _load_named(path: epath.Path) -> jax.stages.Compiled:
    return _load((path.parent / _name_in(path.read_bytes())).read_bytes())


@functools.cache
def _machine() -> str:
    """All that a compiled program depends on beside its text: the compiler, its flags, and the processor."""
    kinds = ("model name", "flags", "Features", "CPU part")  # on x86 and on ARM
    lines = CPUS.read_text().splitlines() if CPUS.exists() else [platform.processor()]
    facts = sorted({line for line in lines if not CPUS.exists() or line.startswith(kinds)})
    return repr((jaxlib.__version__, os.environ.get("XLA_FLAGS"), platform.machine(), os.cpu_count(), facts))
