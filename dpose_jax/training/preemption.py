"""SIGTERM, Ctrl-C, and the end of a terminal (SIGHUP) during training.

Clouds and SLURM send the first some seconds before they take a machine away.
"""

import contextlib
import os
import signal
import socket
import sys
import threading

import jax
from jax.experimental import multihost_utils

from dpose_jax.runtime import multihost

# EX_TEMPFAIL of sysexits.h: try again later. Schedulers can be set to restart on it.
PREEMPTED_STATUS = 75


class Preempted(SystemExit):
    """Ends the program with PREEMPTED_STATUS, once the state of `step` is saved."""

    def __init__(self, step: int, name: str = "SIGTERM"):
        super().__init__(PREEMPTED_STATUS)
        if multihost.is_first():
            _say(f"{name}: step {step} is saved, the same command goes on from there")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(text, file=sys.stderr, flush=True)


class Preemption(contextlib.ExitStack):
    """A context in which SIGTERM, SIGINT and SIGHUP do not end the process: `due`, called after every step, is True.

    Alone, a second SIGTERM or SIGINT ends it at once with status 128 + its number, even while a step is compiled; among
    several processes JAX's client receives them. SIGHUP stays ignored where it was, as by nohup.
    """

    def __init__(self):
        super().__init__()
        self.name = "SIGTERM"  # of the signal that came
        self._preempted, self._calls, self._alone = False, 0, jax.process_count() == 1
        # Python handles signals in the main thread alone.
        if threading.current_thread() is not threading.main_thread():
            return
        # Among several processes JAX's own client receives SIGTERM.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if self._alone else (signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            before = signal.signal(number, self._receive)
            self.callback(signal.signal, number, before or signal.SIG_DFL)
        self._watch()

    def _receive(self, number: int, _) -> None:
        if not self._alone:
            signal.raise_signal(signal.SIGTERM)
            return
        if not self._preempted:
            self.name = signal.Signals(number).name
            _say(f"\n{self.name}: saving after this step; once more ends the run at once")
        self._preempted = True

    def _watch(self) -> None:
        """Starts a thread that counts signals, since the main one may be busy in a long call, such as a compilation."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

        def stop() -> None:
            signal.set_wakeup_fd(before)
            writer.close()
            thread.join()
            reader.close()

        def count() -> None:
            received = 0
            while numbers := reader.recv(1):
                received += numbers[0] in (signal.SIGTERM, signal.SIGINT)
                if received == 2:
                    # A checkpoint being written has a temporary name still, and workers see that we are gone.
                    os.write(2, b"\nsecond signal: ended without saving\n")
                    os._exit(128 + numbers[0])

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        self.callback(stop)

    def due(self) -> bool:
        """Whether to save and stop now. Several processes call it equally often, and get the same answer each time."""
        if not self._alone and not self._preempted:
            self._calls += 1
            self._preempted = multihost_utils.reached_preemption_sync_point(self._calls)
        return self._preempted
