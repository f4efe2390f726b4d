"""What is found out once: results kept beside the compiled programs, for a faster next start."""

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeVar

import jax
from etils import epath

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KEPT_DAYS = 30
KINDS = ("checked", "shapes", "program", "compiled")
T = TypeVar("T")


def kept(name: str, make: Callable[[], T], write: Callable[[T], bytes], read: Callable[[bytes], T]) -> T:
    """`make()`, or what `read` gives of the file `name` that `write` made of it earlier.

    `name` is one of KINDS, "-", and a digest of all that `make` depends on. `make` is called anew if `read`
    fails on a damaged file, and every time without a folder of compiled programs that can be written to (see
    `runtime.cpu.keep_compiled_programs`). Files that nothing has read for KEPT_DAYS, as of older code, are deleted.
    """
    folder = programs_folder()
    if folder is None:
        return make()
    path = folder / name
    # What a damaged file makes readers raise is open-ended; to find out anew is always right.
    with contextlib.suppress(Exception):
        result = read(path.read_bytes())
        with contextlib.suppress(OSError):
            os.utime(path)
        return result
    result = make()
    # A folder that cannot be written to is no error, nor is a program that JAX cannot store.
    with contextlib.suppress(OSError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError):
        for kind in KINDS:
            for other in folder.glob(f"{kind}-*"):
                if time.time() - other.stat().mtime > KEPT_DAYS * 24 * 3600:
                    other.unlink()
        part = path.with_name(f"{name}.{os.getpid()}")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(write(result))
        part.replace(path)
    return result


def digest(*inputs: str) -> str:
    """SHA-256 of `inputs` and of the code of dpose_jax, JAX and Flax, in hexadecimal."""
    return hashlib.sha256("\0".join([code(), *inputs]).encode()).hexdigest()


def check_once(check: Callable[[], None], *inputs: str) -> None:
    """Calls `check` unless it has passed before for the same `inputs`, see `kept`."""
    kept(f"checked-{digest(check.__qualname__, *inputs)}", check, lambda _: b"", lambda _: None)


def programs_folder() -> epath.Path | None:
    """Where compiled programs are kept, if they are."""
    folder = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 (unknown to type checkers)
    enabled = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009
    return epath.Path(folder) if folder is not None and enabled else None


@functools.cache
def code() -> str:
    """SHA-256 of the files of dpose_jax, with the versions of JAX and Flax."""
    whole = hashlib.sha256(f"{jax.__version__} {version('flax')}".encode())
    for folder, _, files in sorted(os.walk(PACKAGE)):
        for name in sorted(file for file in files if file.endswith(".py")):
            with open(os.path.join(folder, name), "rb") as file:
                whole.update(hashlib.sha256(file.read()).digest() + name.encode())
    return whole.hexdigest()


def is_ours(*parts: Any) -> bool:
    """Whether the code of this package, by which results are found, has all of `parts`."""
    return all(getattr(part, "__module__", "").partition(".")[0] == "dpose_jax" for part in parts)
