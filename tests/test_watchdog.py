"""A reader that hangs is said to hang."""

import contextlib
import threading

from test_loader import Memory, settings

from dpose_jax.data import loader, watchdog


def test_a_batch_that_does_not_come_is_said(monkeypatch, caplog):
    """While the reader hangs, not afterwards; a batch that comes in time says nothing."""
    monkeypatch.setattr(watchdog, "WAIT_SECONDS", 0.2)
    hangs, go_on = threading.Event(), threading.Event()

    class Hanging(Memory):
        def read_image(self, index):
            if hangs.is_set():
                go_on.wait(10)
            return super().read_image(index)

    with (
        caplog.at_level("WARNING", logger="absl"),
        contextlib.closing(loader.train_iterator(settings(), Hanging(9))) as batches,
    ):
        next(batches)
        assert not caplog.records
        hangs.set()
        threading.Timer(1.0, go_on.set).start()
        while not go_on.is_set():
            next(batches)
    first, *more = [record.getMessage() for record in caplog.records]
    assert first.startswith("no batch for 0 s: a disk or server that does not answer") and 1 <= len(more) <= 2
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]
