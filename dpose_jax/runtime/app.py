"""What the entry points share: flags, log level, and errors as one line instead of a traceback."""

import ctypes
import os
import pathlib
import signal
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

from dpose_jax.data.sample import BadRecordError

# What a user can mend: a field, a file, a record.
USER_ERRORS = (ValueError, OSError, BadRecordError)
CPU_FUSION = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_ELTWISE,LIBRARY_FUSION_TYPE_REDUCE"


def run(main: Callable[[], object], errors: tuple[type[Exception], ...] = (), *, keep_programs: bool = True) -> None:
    """Parses the flags and calls `main`; one of USER_ERRORS or `errors` ends the program as `error: ...`, status 1.

    `--verbosity=1` shows the traceback too. `keep_programs`: see `keep_compiled_programs`.
    """

    def call(argv):
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments: {argv[1:]}")
        # As Ctrl-C does: unwinding ends the loader's worker processes, which would outlive a plain SIGTERM.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        keep_freed_memory()
        fuse_on_the_cpu()
        if keep_programs:
            keep_compiled_programs()
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax logs every phase of a save
        try:
            main()
        except USER_ERRORS + errors as error:
            logging.debug("", exc_info=True)
            sys.exit(f"error: {error}\n(--verbosity=1 shows where)")

    app.run(call, flags_parser=_parse)


def keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks for the next step instead of giving them back to the system; a no-op elsewhere.

    XLA:CPU allocates its temporaries anew every step. By default that is a page fault for every 4 KiB of them:
    110,000 a second for `configs/lspet_tiny.py` on two cores, 22 a second with this.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library, such as musl
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # malloc.h
    for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28), (arena_max, 1)):
        mallopt(option, value)


def fuse_on_the_cpu() -> None:
    """Lets XLA:CPU hand chains of element-wise operations and reductions to YNNPACK, the library within it.

    It compiles less itself: HRNet-W32 infers 1.6 times as fast, trains 1.4 times as fast, and compiles in a quarter
    of the time; soft masks take three times as long (docs/performance.md). The value replaces XLA's own choice,
    convolutions. It has to be set before the first computation; a value in XLA_FLAGS goes first, and other platforms
    do not read it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_cpu_experimental_ynn_fusion_type" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {CPU_FUSION}".strip()


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next start of the same run compiles nothing.

    The folder is ~/.cache/dpose_jax/programs, below $XDG_CACHE_HOME where that is set; it may be deleted at any time.
    JAX's own variables go first: JAX_COMPILATION_CACHE_DIR names another folder (a bucket too, for a pod), and
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "dpose_jax" / "programs"))


def _parse(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        # ml_collections' own text, which names the nearest field, is the innermost of the wrapped errors.
        text = error.args[0]
        while isinstance(text, Exception):
            text = text.args[0]
        sys.exit(f"error: unknown config field {text}" if text.startswith("'") else f"error: {text}")
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
