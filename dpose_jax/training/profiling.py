"""A profiler trace of some steps, for TensorBoard's profile plugin or Perfetto."""

import jax

WARM_STEPS = 3  # of a run, before the trace begins: the first one compiles


class Trace:
    """A context that traces `count` steps of a run into `folder`, none if it is 0; call `after` after every step.

    Each process writes its own file.
    """

    def __init__(self, count: int, start: int, folder: str):
        """`start` steps are done when the run begins; the trace leaves out its first WARM_STEPS."""
        self._first = start + WARM_STEPS if count else -1
        self._last = self._first + count if count else -1
        self._folder = folder
        self._on = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def after(self, step: int, outputs) -> None:
        """Starts or stops the trace, after waiting for the step's `outputs`, so that it holds whole steps."""
        if step == self._first:
            jax.block_until_ready(outputs)
            jax.profiler.start_trace(self._folder)
            self._on = True
        elif step == self._last:
            jax.block_until_ready(outputs)
            self._stop()

    def _stop(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
