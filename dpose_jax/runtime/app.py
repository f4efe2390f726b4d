"""What the entry points share: flags, log level, and errors as one line instead of a traceback."""

import atexit
import contextlib
import gc
import io
import logging as builtin_logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

import cv2
import jax
from absl import app, flags, logging

from dpose_jax.runtime import cpu, multihost, start

# What a user can mend: a field, a file, a record.
USER_ERRORS = (ValueError, OSError)
# Flags that name a file or folder, whichever program has them.
PATHS = (
    *("annotations", "boxes", "detector", "input", "joint_set", "joint_set_from", "model", "out", "results"),
    *("weights", "workdir", "yolo"),
)
# JAX's words for a platform that it cannot start, and for a process that does not answer.
_NO_PLATFORM = re.compile(r"initialize backend|[Uu]nknown backend|list of known backends")
_NO_PEER = re.compile(r"Gloo \S+ failed|(UNAVAILABLE|DEADLINE_EXCEEDED): .*([Cc]oordination|RPC|heartbeat)")


def run(main: Callable[[], object], errors: tuple[type[Exception], ...] = (), *, keep_programs: bool = True) -> None:
    """Parses the flags and calls `main`. One of USER_ERRORS or `errors` ends the program as `error: ...`, status 1.

    `--verbosity=1` prints the traceback too. `keep_programs`: whether to call `cpu.keep_compiled_programs`.
    """

    def call(argv):
        if len(argv) > 1:
            sys.exit(
                f"error: unknown argument {argv[1]!r}: values follow their flag as --flag=value, one each; see --help"
            )
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # As Ctrl-C does: unwinding ends the loader's worker processes, which would outlive a plain SIGTERM.
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, lambda number, _: sys.exit(128 + number))
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a file's name may have what the terminal's encoding lacks
                stream.reconfigure(errors="backslashreplace")
        gc.freeze()  # what was imported is never garbage
        start.collect_rarely()
        cpu.keep_freed_memory()
        cpu.fuse_elementwise()
        if not flags.FLAGS["verbosity"].present:
            _only_our_lines()
        if keep_programs:
            cpu.keep_compiled_programs()
        status = 0
        try:
            with multihost.leaving():
                _expand_paths()
                main()
        except (KeyboardInterrupt, SystemExit) as error:
            if not (status := multihost.signal_status(error)):
                raise
            if isinstance(error, KeyboardInterrupt):
                print("\ninterrupted", file=sys.stderr)
        except MemoryError as error:
            logging.debug("", exc_info=True)
            sys.exit(f"error: no memory is left{f': {error}' if str(error) else ''}\n(--verbosity=1 shows where)")
        except (RuntimeError, *USER_ERRORS, *errors) as error:
            what = _what_failed(str(error)) if isinstance(error, RuntimeError | ValueError) else None
            if what is not None:
                error = ValueError(f"{what}: {str(error).splitlines()[0]}")
            elif isinstance(error, RuntimeError) and not isinstance(error, errors):
                raise
            logging.debug("", exc_info=True)
            sys.exit(f"error: {error}\n(--verbosity=1 shows where)")
        if status:  # here, where the error and with it every frame is gone
            _leave(status)

    app.run(call, flags_parser=flag_errors()(lambda argv: flags.FLAGS(argv)))


def _leave(status: int) -> NoReturn:
    """Ends the program after a signal, by what is registered for the end, except that JAX keeps its client.

    A signal breaks off the wait for a compilation, with which a thread of XLA goes on. JAX's own end would delete the
    client that this thread uses: a segmentation fault (jaxlib 0.10).
    """
    with contextlib.suppress(ImportError, AttributeError):  # private, in JAX 0.10 and 0.11 at least
        from jax._src import api

        atexit.unregister(api.clean_up)
    atexit._run_exitfuncs()
    with contextlib.suppress(RuntimeError):  # of other processes of the run that are gone
        jax.distributed.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # of a terminal that has ended
            stream.flush()
    os._exit(status)


def _what_failed(text: str) -> str | None:
    """What an error of JAX with this text means to a user, if it is no fault of the code."""
    if _NO_PLATFORM.search(text):
        extras = 'pip install -e ".[cuda]" or ".[tpu]" adds one, JAX_PLATFORMS=cpu does without'
        return f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r} ({extras})"
    if jax.distributed.is_initialized() and _NO_PEER.search(text):
        return "another process of the run has ended, see what it prints"
    return None


def _only_our_lines() -> None:
    """Drops what other libraries log or warn about, but for errors; python -W keeps warnings.

    The errors of orbax and asyncio go too: they log, with a traceback, what is raised, which our own line says. So does
    tensorstore, once for every array, when a checkpoint cannot be written and orbax's loop has ended.
    """
    logging.set_verbosity(logging.WARNING)  # orbax logs every phase of a save
    package, raising = os.path.dirname(os.path.dirname(__file__)), re.compile(r"[/\\\\](orbax|asyncio)[/\\\\]")
    for handler in (logging.get_absl_handler(), *builtin_logging.getLogger().handlers):
        handler.addFilter(
            lambda record: (
                record.pathname.startswith(package)
                or (record.levelno >= builtin_logging.ERROR and not raising.search(record.pathname))
            )
        )
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    # Of worker processes, and of the FFmpeg in OpenCV.
    for name, level in (("OPENCV_LOG_LEVEL", "SILENT"), ("OPENCV_FFMPEG_LOGLEVEL", "-8")):
        os.environ.setdefault(name, level)
    shown = sys.unraisablehook

    def unraisable(ignored) -> None:
        if not (isinstance(ignored.exc_value, RuntimeError) and str(ignored.exc_value) == "Event loop is closed"):
            shown(ignored)

    sys.unraisablehook = unraisable
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _expand_paths() -> None:
    """Makes `~` the home folder in PATHS, as no shell does after `--flag=`; ValueError where that is none, or empty."""
    try:
        os.getcwd()
    except OSError as error:
        raise OSError("the current folder was deleted; change to one that exists") from error
    for name in set(PATHS) & set(flags.FLAGS):
        flag = flags.FLAGS[name]
        if flag.value == "":
            raise ValueError(f"--{name}='': must name a file, folder or bucket; is a variable of the shell unset?")
        if isinstance(flag.value, str):
            flag.value = os.path.expanduser(path := flag.value)
            if flag.value.startswith("~"):
                raise ValueError(f"--{name}={path!r}: no home folder is known for it; ./~ begins the name of a folder")


@contextlib.contextmanager
def flag_errors() -> Iterator[None]:
    """Ends the program with `error: ...` in one line if a flag is unknown or its value cannot be read."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: {unknown_field(error)}")
    except (flags.Error, *USER_ERRORS, TypeError) as error:
        sys.exit(f"error: {error}")


def unknown_field(error: Exception) -> str:
    """ml_collections' error about a field that a config lacks, in one line with the nearest name."""
    text = error.args[0]
    while isinstance(text, Exception):  # the wrapped ones
        text = text.args[0]
    text = text.replace("\nDid you", "; did you")
    return f"unknown config field {text}" if text.startswith("'") else text


def only_with(name: str, *others: str) -> None:
    """Refuses the flag `name` where none of the flags `others` is given, without which it says nothing."""

    def given(values: dict) -> bool:
        return not flags.FLAGS[name].present or any(values[other] is not None for other in others)

    text = f"--{name} is for --{' or --'.join(others)}, which {'is' if len(others) == 1 else 'are'} not given"
    flags.register_multi_flags_validator([name, *others], given, message=text)
