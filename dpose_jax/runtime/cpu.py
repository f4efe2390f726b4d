"""Settings that make JAX faster on a CPU: XLA's fusions, freed memory, and a cache of compiled programs."""

import contextlib
import ctypes
import os
import pathlib
import re
import sys
import warnings

import jax
from etils import epath

FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
FUSIONS = "LIBRARY_FUSION_TYPE_ELTWISE,LIBRARY_FUSION_TYPE_REDUCE"


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks for the next step; does nothing with another C library.

    XLA:CPU allocates its temporaries anew every step. By default each 4 KiB of them is a page fault: 110,000 a second
    for a U-Net of C = 32 at 128 x 96 on two cores, 22 a second with this.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # malloc.h
    for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28), (arena_max, 1)):
        mallopt(option, value)


def release_freed_memory() -> None:
    """Gives what glibc keeps back to the system, such as what compiling took; does nothing with another C library."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def fuse_elementwise() -> None:
    """Sets XLA_FLAGS so that XLA:CPU fuses element-wise operations and reductions by YNNPACK, the library within it.

    HRNet-W32 then infers 1.6 times as fast, trains 1.4 times as fast, and compiles in a quarter of the time; soft masks
    take three times as long (docs/performance.md). XLA reads the variable at the first computation of a process. A
    value that the user gave stays; other platforms ignore it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FUSION_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FUSION_FLAG}={FUSIONS}".strip()


def keep_compiled_programs() -> None:
    """Stores compiled programs, so that the next start of the same run compiles nothing.

    The folder is ~/.cache/dpose_jax/programs, below $XDG_CACHE_HOME where that is set; it may be deleted at any time.
    JAX's own variables have priority: JAX_COMPILATION_CACHE_DIR names another folder (a bucket too, for a pod), and
    JAX_ENABLE_COMPILATION_CACHE=false stores nothing. Where there is no such folder and none can be made, as in
    containers, nothing is stored, and a line on stderr says so.
    """
    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009 (unknown to type checkers)
        try:
            cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dpose_jax" / "programs"
            cache.mkdir(parents=True, exist_ok=True)
            if not os.access(cache, os.W_OK):
                raise PermissionError(f"{cache} is not writable")
        except (RuntimeError, OSError) as error:  # the former without HOME, for a user without an entry
            print(f"compiled programs are not kept: {error}; JAX_COMPILATION_CACHE_DIR names a folder", file=sys.stderr)
        else:
            jax.config.update("jax_compilation_cache_dir", str(cache))
    folder = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009
    if folder is not None:
        mend_programs(folder)


def mend_programs(folder: str) -> None:
    """Deletes stored programs of `folder` that JAX warns it cannot read, so that they are compiled and stored anew.

    JAX itself never overwrites one, so after a kill in a write every start would compile.
    """
    text, show = "Error reading persistent compilation cache entry for '", warnings.showwarning

    def mend(message, *arguments, **options) -> None:
        found = re.match(rf"{text}([^']*)'", str(message))
        if not found:
            show(message, *arguments, **options)
            return
        print(f"{folder}: the stored program {found[1]!r} is damaged; it is compiled anew")
        for path in epath.Path(folder).glob(f"{found[1]}-*"):
            path.unlink(missing_ok=True)

    warnings.filterwarnings("always", text)
    warnings.showwarning = mend
