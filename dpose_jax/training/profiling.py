"""A profiler trace of some steps, for TensorBoard's profile plugin or Perfetto."""

import contextlib

import jax

WARM_STEPS = 3  # of a run, before the trace begins: the first one compiles


class Trace(contextlib.ExitStack):
    """A context that traces `count` steps of a run into `folder`, none if it is 0; call `after` after every step.

    `start` steps are done when the run begins; the first WARM_STEPS are left out. Each process writes its own file.
    """

    def __init__(self, count: int, start: int, folder: str):
        super().__init__()
        self._first, self._count, self._folder = start + WARM_STEPS, count, folder

    def after(self, step: int, outputs) -> None:
        """Starts or stops the trace, after waiting for the step's `outputs`, so that it holds whole steps."""
        if self._count and step in (self._first, self._first + self._count):
            jax.block_until_ready(outputs)
            if step == self._first:
                self.enter_context(jax.profiler.trace(self._folder))
            else:
                self.close()
