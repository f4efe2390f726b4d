"""Atomic file writes (temporary file and rename), local or in a bucket (gs://)."""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import secrets
import socket
from collections.abc import Iterator

import numpy as np
from etils import epath

SHORT = 1 << 24  # bytes of JSON that is no data set
_GOOGLE = "storage.googleapis.com", 443


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path lies in a bucket (gs://, s3://) and not in a file system."""
    return "://" in os.fspath(path)


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or folder; see `named_errors` for what it may raise about a bucket."""
    with named_errors(path):
        return epath.Path(path).exists()


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file."""
    with named_errors(path):
        return epath.Path(path).read_bytes()


@contextlib.contextmanager
def named_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns every error about a bucket into an OSError that names the path: each client raises types of its own."""
    try:
        if os.fspath(path).startswith("gs://"):
            check_google_storage()
        yield
    except Exception as error:
        if not is_remote(path):
            raise
        if isinstance(error, KeyError):  # of etils, for another scheme
            scheme = os.fspath(path).partition("://")[0]
            raise OSError(f"{path}: {scheme}:// is no bucket that is known; a folder here has no scheme") from error
        # Of a missing package the text says all.
        kind = "" if isinstance(error, ImportError | ConnectionError) else f"{type(error).__name__}: "
        raise OSError(f"{path}: {kind}{error}") from error


@functools.cache
def check_google_storage() -> None:
    """Raises ImportError without gcsfs, and ConnectionError, within 10 s, if Google's server cannot be reached.

    gcsfs would try for a minute, and print a traceback for each try. Where the environment names a proxy or another
    server, nothing is tried.
    """
    if importlib.util.find_spec("gcsfs") is None and importlib.util.find_spec("tensorflow") is None:
        raise ImportError('gs:// needs the gcs extra: pip install -e ".[gcs]"')
    others = ("storage_emulator_host", "fsspec_gcs_endpoint_url", "https_proxy", "all_proxy")
    if any(name.lower() in others and value for name, value in os.environ.items()):
        return
    try:
        socket.create_connection(_GOOGLE, timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"{_GOOGLE[0]} cannot be reached ({error}); is there a network?") from error


@contextlib.contextmanager
def placed(
    place: str, caught: tuple[type[Exception], ...] = (ValueError, TypeError), raised: type[Exception] = ValueError
) -> Iterator[None]:
    """Turns an error that is `caught` into one of `raised`, with `place` before its message: a file or field."""
    try:
        yield
    except caught as error:
        raise raised(f"{place}: {error}") from error


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes `content` atomically; makes the folder if absent. OSError, which names the file, leaves nothing behind."""
    if is_remote(path):
        with named_errors(path):
            epath.Path(path).write_bytes(content)  # an object appears whole, and needs no folder
        return
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    # A part of the name, because a name of up to 255 bytes leaves no room for more.
    beside = os.path.join(folder, f".{os.path.basename(path)[:20]}.{secrets.token_hex(8)}")
    try:
        with open(beside, "xb") as file:  # not of `tempfile`, whose files are private to the user
            file.write(content)
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        if isinstance(error, OSError) and error.errno:  # that of a full disk has no name
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
        raise


def write_json(path: str | os.PathLike, value, *, indent: int | None = 2) -> None:
    """Writes valid JSON by `write_bytes`; numpy scalars and arrays become numbers and lists.

    Raises ValueError if a number is not finite (JSON has no NaN), TypeError if a value has no JSON form.
    """
    text = json.dumps(value, indent=indent, allow_nan=False, default=_from_numpy) + "\n"
    write_bytes(path, text.encode())


def _from_numpy(value):
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def read_json(path: str | os.PathLike, most: int = 1 << 31):
    """The parsed content of a JSON file of at most so many bytes, which take twenty times the memory.

    Raises FileNotFoundError if there is none, ValueError if it is longer, not JSON or cut short; both name the file.
    """
    if not (exists(path) if is_remote(path) else os.path.isfile(path)):
        raise FileNotFoundError(f"{path}: no such file")
    if not is_remote(path) and (size := os.path.getsize(path)) > most:
        raise ValueError(f"{path}: has {size} bytes, more than {most}")
    # A RecursionError comes of brackets nested by the thousand.
    with placed(f"{path}: not JSON, or cut short", (ValueError, RecursionError)):
        return json.loads(read_bytes(path))


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; raises OSError if it is no file or cannot be read."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
