"""What an entry point does before it imports libraries, which takes seconds."""

import gc
import signal


def begin() -> None:
    """Makes Ctrl-C end the program without a traceback, until `app.run` handles it, and calls `collect_rarely`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    collect_rarely()


def collect_rarely() -> None:
    """Python looks for garbage after 50,000 new objects, not 700: this took a sixth of imports, a second of a start."""
    gc.set_threshold(50_000)
