"""Several processes as one run, usually one a host: how they join, what they share, what only the first one does."""

import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from dpose_jax import __version__
from dpose_jax.recipe import Recipe

# Fields that each host may set for itself: where its files lie, and how it reads them. What they hold is compared.
OF_HOST = ("data.root", "data.workers", "joint_set")
SILENT_SECONDS = 5.0  # of waiting for other processes, before a line says so
LEAVING_SECONDS = 10.0  # of waiting for the others' end after an error
T = TypeVar("T")


def define_flags() -> None:
    """The flags of an entry point that may run as several processes; `connect_from_flags` reads them."""
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0; found on Cloud TPU, GKE and SLURM.")
    flags.DEFINE_integer("num_processes", None, "How many processes make the run; 1 looks for no others.", 1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", 0)
    flags.DEFINE_integer("connect_seconds", 300, "How long to wait for all of them.", 1)


def connect_from_flags(*, notes_sigterm: bool) -> None:
    """`connect` with the flags' values; SIGTERM ends each process, unless the program calls `Preemption.due`."""
    values = flags.FLAGS
    jax.config.update("jax_enable_preemption_service", notes_sigterm)
    connect(values.connect_seconds, values.coordinator_address, values.num_processes, values.process_id)


def connect(
    seconds: int,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process, number `process_id` from 0, to the others of the run; before any other use of JAX.

    `coordinator_address` is HOST:PORT of process 0, the same for all. Without the three, Cloud TPU, GKE or SLURM set
    the place in the run through the environment (see `jax.distributed.initialize`). Where nothing does, or with
    `num_processes` 1, the process is alone. If the others do not join within `seconds`, it ends with an error message
    and status 1. Raises ValueError if only some of the three are given, or one is out of range.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    if num_processes == 1:
        return
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(f"--{missing[0]} is not given: the three flags --{', --'.join(given)} belong together")
    if process_id is not None and num_processes is not None and process_id >= num_processes:
        raise ValueError(f"--process_id={process_id}: must be below --num_processes={num_processes}")
    if coordinator_address is not None and not coordinator_address.rpartition(":")[2].isdecimal():
        raise ValueError(f"--coordinator_address={coordinator_address!r}: must be HOST:PORT")

    def give_up() -> None:
        who = "this process" if missing else f"process {process_id} of {num_processes}"
        where = coordinator_address or "that the environment names"
        text = f"error: coordinator_address {where}: {who} did not meet all the others within {seconds} s"
        print(text, file=sys.stderr, flush=True)
        os._exit(1)

    def say_waiting() -> None:
        where = coordinator_address or "that the environment names"
        text = f"coordinator_address {where}: waiting for the other processes, at most {seconds} s"
        print(text, file=sys.stderr, flush=True)

    # At `initialization_timeout` JAX's client aborts the process with a stack trace, so the timer ends it before.
    timers = [threading.Timer(seconds, give_up), threading.Timer(min(SILENT_SECONDS, seconds / 2), say_waiting)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id, initialization_timeout=2 * seconds)
    except ValueError as error:
        if len(missing) < len(given) or "coordinator_address" not in str(error):
            raise
    finally:
        for timer in timers:
            timer.cancel()


def is_first() -> bool:
    """Whether this is process 0, the one that writes and prints."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints once, whatever the number of processes."""
    if is_first():
        print(text)


def gather(rows: Any) -> Any:
    """Every process's rows, one process after the other, for every process: a tree of (processes x N, ...).

    `rows` is a tree of numpy arrays (N, ...) of at most 32 bits a number, of one shape on all processes.
    """
    if jax.process_count() == 1:
        return rows
    with jax.transfer_guard("allow"):
        return jax.tree.map(np.asarray, multihost_utils.process_allgather(rows, tiled=True))


def from_first(function: Callable[[], Any]) -> Any:
    """What `function` returns on the first process, a JSON value, for every process; the others do not call it.

    An error of the first process is raised on all, so that none waits for it: there as it is, on the others as
    ValueError if it is one, else as OSError, since each client of a bucket has types of its own.
    """
    if jax.process_count() == 1:
        return function()
    content, failure = b"", None
    if is_first():
        try:
            answer: list = ["value", function()]
        except Exception as error:
            failure, known = error, isinstance(error, ValueError | OSError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            answer = ["ValueError" if isinstance(error, ValueError) else "OSError", text]
        content = json.dumps(answer).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.frombuffer(content.ljust(size), np.uint8)
    kind, found = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())
    if failure is not None:
        raise failure
    if kind == "value":
        return found
    raise (OSError if kind == "OSError" else ValueError)(found)


def agreed(function: Callable[[], T]) -> T:
    """What `function`, which waits for no other process, returns on each process; all call it.

    A ValueError or OSError of some of them is raised there, and as ValueError, which names them, on the others.
    """
    if jax.process_count() == 1:
        return function()
    failure: Exception | None = None
    try:
        found = function()
    except (ValueError, OSError) as error:
        failure = error
    failed = np.flatnonzero(gather(np.array([failure is not None]))).tolist()
    if failure is not None:
        raise failure
    if failed:
        raise ValueError(
            f"{len(failed)} of {jax.process_count()} processes cannot go on, see what they print: {failed}"
        )
    return found


def signal_status(error: BaseException) -> int:
    """The status of a program that ends with this error, if a signal has raised it; else 0."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    code = error.code if isinstance(error, SystemExit) else None
    return code if isinstance(code, int) and code > 128 else 0


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """An error that leaves it ends this process of several within LEAVING_SECONDS, with the status that it would have.

    JAX has each process wait at its end for all the others, which may wait for this one elsewhere. A SystemExit of
    another status than a signal's is one that all take together, for which they wait.
    """
    try:
        yield
    except BaseException as error:
        status = signal_status(error) or (0 if isinstance(error, SystemExit) else 1)
        if status and jax.distributed.is_initialized():
            timer = threading.Timer(LEAVING_SECONDS, os._exit, [status])
            timer.daemon = True
            timer.start()
        raise


def check_same(values: dict[str, Any]) -> None:
    """Raises ValueError on all processes if one has other `values`, which it names; they are compared by hash."""
    if jax.process_count() == 1:
        return
    for compared in ({"the version of dpose_jax": sorted(values)}, values):
        sums = [int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:4]) for value in compared.values()]
        found = gather(np.array([sums], np.uint32))
        own = [f"{value!r:.60}" for value in compared.values()]
        first = from_first(own.copy)
        lines = []
        for name, column, theirs, ours in zip(compared, found.T, first, own, strict=False):
            others = np.flatnonzero(column != column[0]).tolist()
            here = f", {ours} on process {jax.process_index()}" if jax.process_index() in others else ""
            if others:
                lines.append(f"{name}: {theirs} on process 0{here}; not the same on process {others}")
        if lines:
            raise ValueError("\n  ".join(["the processes of a run have to be given the same:", *lines]))


def check_hosts(recipe: Recipe, workdir: str) -> None:
    """Raises ValueError on all processes of a run if they were given another recipe or workdir; it names each field."""
    fields = {name: value for name, value in recipe.flatten().items() if name not in OF_HOST}
    check_same(fields | {"joint_set": recipe.joints, "--workdir": workdir, "dpose_jax": __version__})
