"""Checks that are made once: what has passed is noted beside the compiled programs, for a faster next start."""

import functools
import hashlib
import os
from collections.abc import Callable
from importlib.metadata import version

import jax
from etils import epath

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def check_once(check: Callable[[], None], *inputs: str) -> None:
    """Calls `check` unless it has passed before for the same `inputs`, by the same code.

    `inputs` are all that it depends on beside the code of dpose_jax, JAX and Flax. Without a folder of compiled
    programs (see `runtime.cpu.keep_compiled_programs`), or one that can be written to, it is called every time.
    """
    folder = programs_folder()
    if folder is None:
        check()
        return
    digest = hashlib.sha256("\0".join([code(), check.__qualname__, *inputs]).encode()).hexdigest()
    note = folder / f"checked-{digest}"
    try:
        if note.exists():
            return
    except OSError:
        pass
    check()
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    except OSError:
        pass  # a folder that cannot be written to


def programs_folder() -> epath.Path | None:
    """Where compiled programs are kept, if they are."""
    folder = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 (unknown to type checkers)
    enabled = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009
    return epath.Path(folder) if folder is not None and enabled else None


@functools.cache
def code() -> str:
    """SHA-256 of the files of dpose_jax, with the versions of JAX and Flax."""
    digest = hashlib.sha256(f"{jax.__version__} {version('flax')}".encode())
    for folder, _, files in sorted(os.walk(PACKAGE)):
        for name in sorted(file for file in files if file.endswith(".py")):
            with open(os.path.join(folder, name), "rb") as file:
                digest.update(hashlib.sha256(file.read()).digest() + name.encode())
    return digest.hexdigest()
