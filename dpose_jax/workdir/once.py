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

from dpose_jax.models.backbones import Backbone
from dpose_jax.workdir import files

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KEPT_DAYS = 30
KINDS = ("checked", "shapes", "program", "compiled")
T = TypeVar("T")


def kept(name: str, make: Callable[[], T], write: Callable[[T], bytes], read: Callable[[bytes], T]) -> T:
    """`make()`, or what `read` gives of the file `name` that `write` made of it earlier.

    `name` is one of KINDS, "-", and a digest of all that `make` depends on. `make` is called anew if `read`
    fails on a damaged file, and every time without a folder of compiled programs that can be written to (see
    `runtime.cpu.keep_compiled_programs`). Files that nothing has read for KEPT_DAYS, as of older code, are deleted.
    No fault of the folder, or of the bucket that it may be, is an error.
    """
    folder = programs_folder()
    if folder is None:
        return make()
    path = folder / name
    # What readers raise of a damaged file, or clients of a bucket, is open-ended; to find out anew is always right.
    with contextlib.suppress(Exception):
        result = read(path.read_bytes())
        with contextlib.suppress(OSError):
            os.utime(path)
        return result
    result = make()
    with contextlib.suppress(Exception):  # also of a program that JAX cannot store
        _delete_old(folder)
        files.write_bytes(path, write(result))
    return result


def _delete_old(folder: epath.Path) -> None:
    """Deletes what nothing has read for KEPT_DAYS, and what a kill left of a write, as far as this user may."""
    for path in [path for kind in KINDS for path in (*folder.glob(f"{kind}-*"), *folder.glob(f".{kind}-*"))]:
        with contextlib.suppress(OSError):  # another's file, or one that another run has just replaced
            if time.time() - path.stat().mtime > KEPT_DAYS * 24 * 3600:
                path.unlink()


def digest(*inputs: str) -> str:
    """SHA-256 of `inputs` and of the code of dpose_jax, JAX, Flax and Optax, in hexadecimal."""
    return hashlib.sha256("\0".join([code(), *inputs]).encode()).hexdigest()


def check_once(check: Callable[[], None], *inputs: str | None) -> None:
    """Calls `check` unless it has passed before for the same `inputs`, see `kept`; a None among them: always."""
    known = [one for one in inputs if one is not None]
    if len(known) < len(inputs):
        check()
    else:
        kept(f"checked-{digest(check.__qualname__, *known)}", check, lambda _: b"", lambda _: None)


def programs_folder() -> epath.Path | None:
    """Where compiled programs are kept, if they are."""
    folder = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 (unknown to type checkers)
    enabled = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009
    return epath.Path(folder) if folder is not None and enabled else None


@functools.cache
def code() -> str:
    """SHA-256 of the files of dpose_jax, with the versions of what else its programs are made by."""
    whole = hashlib.sha256(f"{jax.__version__} {version('flax')} {version('optax')}".encode())
    for folder, _, names in sorted(os.walk(PACKAGE)):
        for name in sorted(name for name in names if name.endswith(".py")):
            with open(os.path.join(folder, name), "rb") as file:
                whole.update(hashlib.sha256(file.read()).digest() + name.encode())
    return whole.hexdigest()


def facts_of(backbone: Backbone) -> str | None:
    """All that a backbone depends on beside the code of this package; None where that does not make it."""
    return repr(backbone.spec) if is_ours(backbone.build) else None


def is_ours(*parts: Any) -> bool:
    """Whether the code of this package, by which results are found, has all of `parts`."""
    return all(getattr(part, "__module__", "").partition(".")[0] == "dpose_jax" for part in parts)
