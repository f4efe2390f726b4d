"""SIGTERM during training: clouds and SLURM send it some seconds before they take a machine away."""

import contextlib
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

from dpose_jax.runtime import multihost

# EX_TEMPFAIL of sysexits.h: try again later. Schedulers can be set to restart on it.
PREEMPTED_STATUS = 75


class Preempted(SystemExit):
    """Ends the program with PREEMPTED_STATUS, once the state of `step` is saved."""

    def __init__(self, step: int):
        super().__init__(PREEMPTED_STATUS)
        if multihost.is_first():
            print(f"SIGTERM: step {step} is saved, the same command goes on from there", file=sys.stderr)


class Preemption(contextlib.ExitStack):
    """A context in which SIGTERM does not end the process but makes `due`, called after every step, return True."""

    def __init__(self):
        super().__init__()
        self._preempted, self._calls = False, 0
        # Among several processes JAX's own client receives the signal. Python handles signals in the main thread alone.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, self._receive)
            self.callback(signal.signal, signal.SIGTERM, before or signal.SIG_DFL)

    def _receive(self, *_) -> None:
        self._preempted = True

    def due(self) -> bool:
        """Whether to save and stop now. Several processes call it equally often, and get the same answer each time."""
        if jax.process_count() > 1 and not self._preempted:
            self._calls += 1
            self._preempted = multihost_utils.reached_preemption_sync_point(self._calls)
        return self._preempted
