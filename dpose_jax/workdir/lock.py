"""The lock of a workdir, so that no two runs train into it at once."""

import contextlib
import datetime
import fcntl
import json
import os
import socket

from dpose_jax.workdir import files

LOCK_FILE = "run.lock"


@contextlib.contextmanager
def locked(workdir: str):
    """Holds WORKDIR/run.lock, which says host, pid and start of its owner; raises BlockingIOError if another run does.

    The lock is the file system's (flock), so it ends with its owner, however that dies, and the next run takes it over.
    Over a network it needs a file system whose locks reach all hosts, as NFS 4, Lustre and GPFS have. Buckets have no
    locks: there, and where the file system refuses, nothing is locked.
    """
    if files.is_remote(workdir):
        yield
        return
    os.makedirs(workdir, exist_ok=True)
    path = os.path.join(workdir, LOCK_FILE)
    handle = _open_locked(path)
    try:
        host = socket.gethostname()
        if owner := _owner(handle):
            where = "" if repr(host) in owner else ", or runs where the locks of this file system do not reach"
            print(f"{path}: taken over from {owner} which is dead{where}")
        start = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with files.placed(path, (OSError,), OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"host": host, "pid": os.getpid(), "start": start}).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # the workdir may be gone; one that has nothing else in it goes too
            os.unlink(path)
            os.rmdir(workdir)
        os.close(handle)


def _open_locked(path: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(handle) or "another process"
            os.close(handle)
            text = f"{path}: {owner} trains into this workdir; wait for its end, or give another --workdir"
            raise BlockingIOError(text) from None
        except OSError as error:
            print(f"{path}: not locked ({error.strerror}); start no second run in this workdir")
            return handle
        # The owner before may have deleted the file between our opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def _owner(handle: int) -> str | None:
    """The owner that the file names, None if it names none."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return f"process {found['pid']} on host {found['host']!r}, started {found['start']},"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
