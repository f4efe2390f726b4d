"""Files that are whole or absent: written beside their place, then renamed."""

import hashlib
import json
import os
import tempfile

import numpy as np


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes `content` so that a reader never sees half a file; the folder is made if absent.

    Raises:
      OSError: if it cannot be written; nothing is left behind.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(beside, 0o644)  # mkstemp's own mode is private to the user
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def write_json(path: str | os.PathLike, value, *, indent: int | None = 2) -> None:
    """Writes valid JSON by `write_bytes`; numpy scalars and arrays become numbers and lists.

    Raises:
      ValueError: if a number is not finite: JSON has no NaN.
      TypeError: if a value has no JSON form.
    """
    text = json.dumps(value, indent=indent, allow_nan=False, default=_from_numpy) + "\n"
    write_bytes(path, text.encode())


def read_json(path: str | os.PathLike):
    """The parsed content of a JSON file.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is not JSON, or cut short. Both name the file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as stream:
        try:
            return json.load(stream)
        except ValueError as error:
            raise ValueError(f"{path}: not JSON, or cut short: {error}") from error


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_numpy(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")
