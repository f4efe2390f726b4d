"""SIGTERM during training: what clouds and SLURM send some seconds before they take a machine away."""

import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

from dpose_jax.runtime import multihost

# EX_TEMPFAIL of sysexits.h: "the same again, later". Schedulers can be told to restart on it.
PREEMPTED_STATUS = 75


class Preempted(SystemExit):
    """Ends the program with PREEMPTED_STATUS, once the state of `step` is saved."""

    def __init__(self, step: int):
        super().__init__(PREEMPTED_STATUS)
        if multihost.is_first():
            print(f"SIGTERM: step {step} is saved, the same command goes on from there", file=sys.stderr)


class Preemption:
    """A context in which SIGTERM is noted instead of obeyed; ask `due` after every step.

    Attributes:
      told: whether `due` has said so.
    """

    def __init__(self):
        self.told = False
        self._noted = False
        self._asked = 0
        self._before = None

    def __enter__(self) -> "Preemption":
        # Among several processes JAX's own client notes the signal. Signals belong to the main thread.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_) -> None:
        self._noted = True

    def due(self) -> bool:
        """Whether to save and stop now; several processes ask equally often, and all are told at the same question."""
        if not self.told:
            self._asked += 1
            several = jax.process_count() > 1
            self.told = multihost_utils.reached_preemption_sync_point(self._asked) if several else self._noted
        return self.told
