"""Whether a checkpoint is whole: a list of the SHA-256 of its files, written into it before it gets its name."""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from dpose_jax.workdir import files

CHECKSUMS_FILE = "checksums.json"
MARK = "commit_success.txt"  # which orbax writes last
STEP = "/step"  # beside the paths, none of which begins so: the checkpoint to which the files belong


def add_checksums(folder: epath.Path, step: int) -> None:
    """Writes CHECKSUMS_FILE into a folder of the file system or a bucket: the SHA-256 of every file below, by path.

    `step` is that of the checkpoint, whose own name may be a temporary one still.
    """
    files.write_json(folder / CHECKSUMS_FILE, _sums(folder) | {STEP: step}, indent=None)


def damage(folder: epath.Path) -> str | None:
    """What is wrong with the files of a folder, in one line that names the file; None if all are as written.

    A folder without CHECKSUMS_FILE, of an earlier version, has to be there, no more. Raises OSError if a file cannot be
    read for another reason than its content.
    """
    if not folder.is_dir():
        return f"{folder.name}/ is missing"
    if not (folder / CHECKSUMS_FILE).exists():
        return None
    try:
        expected = read_json_object(folder / CHECKSUMS_FILE)
    except ValueError as error:
        return str(error)
    found = _sums(folder)
    # A whole folder of another checkpoint, or a checkpoint with another name.
    if str(step := expected.pop(STEP, folder.parent.name)) != folder.parent.name:
        return f"{folder.name}/ is of step {step!r}"
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            what = "is missing" if name not in found else "is damaged: its checksum differs"
            return f"{folder.name}/{name} {what if name in expected else 'is not of this checkpoint'}"
    return None


def read_json_object(path: epath.Path) -> dict[str, Any]:
    """The JSON object in a file; raises ValueError, which names the file within its checkpoint, if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ValueError(f"{path.parent.name}/{path.name} is missing") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name}/{path.name} is damaged: no JSON object")
    return content


def _sums(folder: epath.Path) -> dict[str, str]:
    paths = [path for path in _files(folder) if path.name not in (CHECKSUMS_FILE, MARK)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        sums = pool.map(_sha256, paths)
        return {str(path.relative_to(folder)): found for path, found in zip(paths, sums, strict=True)}


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):  # of a file browser or NFS; orbax writes none
            continue
        yield from _files(path) if path.is_dir() else (path,)


def _sha256(path: epath.Path) -> str:
    if not (files.is_remote(path) or os.path.isfile(path)):  # a link to nothing, or a FIFO
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
