"""Says when a batch is long in coming: a worker may hang on a file or a disk without any error."""

import contextlib
import threading
import time
from collections.abc import Iterator

from absl import logging

WAIT_SECONDS = 60.0


class Watchdog:
    """Warns, from a thread of its own, while the block of `waits` lasts: after WAIT_SECONDS, then twice as long."""

    def __init__(self, what: str):
        self._what = what
        self._since: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    @contextlib.contextmanager
    def waits(self) -> Iterator[None]:
        """The block that waits."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        warned, after = None, WAIT_SECONDS
        while not self._closed.wait(min(1.0, WAIT_SECONDS / 4)):
            since = self._since  # another thread changes it
            if since != warned:
                after = WAIT_SECONDS
            if since is not None and time.monotonic() - since > after:
                seconds = time.monotonic() - since
                logging.warning("no batch for %.0f s: %s", seconds, self._what)
                warned, after = since, 2 * after
