"""Damaged files for every reader; tests/test_fuzz.py tries a few of them, this command many.

python tests/fuzz.py [--examples=2000] [--seed=0] [--reader=PART_OF_NAME]

A reader raises ValueError or OSError, whose message names the file, or what it gives passes the checks here. A damaged
file is a valid one of which up to four JSON values are replaced, repeated or left out, or bytes changed or cut off.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

from damage import try_reader  # noqa: E402
from fuzz_readers import READERS, record_readers  # noqa: E402


def _described(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "dpose_jax/" in frame.filename]
    where = f"{frames[-1].filename.removeprefix(str(ROOT))}:{frames[-1].lineno}" if frames else "?"
    cause = getattr(error, "__notes__", [""])[0]
    return f"\n  {where}: {type(error).__name__}: {str(error)[:300]}\n    {cause[:600]!s}"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--examples", type=int, default=2000)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--reader", default="")
    options = flags.parse_args()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C warn of each file
    readers = READERS.copy()
    with contextlib.suppress(ValueError), contextlib.redirect_stdout(None):
        readers |= record_readers()
    failed = 0
    for name in [name for name in readers if options.reader in name]:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                counts = try_reader(readers[name], pathlib.Path(folder), options.examples, options.seed)
                text = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            except BaseException as error:  # a panic of a library in Rust is no Exception
                if isinstance(error, KeyboardInterrupt):
                    raise
                failed += 1
                text = "FAILED" + "".join(map(_described, getattr(error, "exceptions", (error,)))) + "\n "
        print(f"{name}: {text}, {time.monotonic() - began:.1f} s", flush=True)
    sys.exit(f"{failed} readers failed" if failed else 0)


if __name__ == "__main__":
    main()
