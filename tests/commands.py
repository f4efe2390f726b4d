"""Entry points as a user runs them, in a process that knows the miniature backbone of tests/miniature.py."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
RUN = """
import runpy, sys
sys.path[:0] = [".", "tests"]
import miniature
target = sys.argv[1]
sys.argv = sys.argv[1:]
run = runpy.run_path if target.endswith(".py") else runpy.run_module
run(target, run_name="__main__")
"""


def command(target, *arguments):
    """Runs a script or a module (`predict.py`, `dpose_jax.export`): status, stdout and stderr."""
    return subprocess.run([sys.executable, "-c", RUN, target, *arguments], cwd=ROOT, capture_output=True, text=True)
