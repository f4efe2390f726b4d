"""A device whose memory is exhausted, said in one line."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def named_shortage(ways: str) -> Iterator[None]:
    """Turns XLA's error that memory is exhausted into a ValueError of one line that ends with `ways`, what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = str(error).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2].rstrip(".")
        raise ValueError(f"the device's memory is too small: {what[:160]}; {ways}") from error
