"""Benchmarks. Each prints a table and writes it, with machine, versions and protocol, as JSON.

python benchmark.py                lists the subcommands
python benchmark.py NAME --help    shows the flags of one
python benchmark.py NAME [--flag=value]
"""

import sys

from absl import flags

import benchmarks
from dpose_jax.runtime import app


def main(arguments: list[str]) -> None:
    """Lists the subcommands, or runs the one that is named."""
    known, name = benchmarks.subcommands(), arguments[0] if arguments else "help"
    if name in ("-h", "--help", "help"):
        print("usage: python benchmark.py NAME [--flag=value]; NAME --help shows the flags\n")
        print("\n".join(f"  {name:<12}{line}" for name, line in known.items()))
        return
    if name not in known:
        sys.exit(f"error: unknown subcommand {name!r}: must be one of {', '.join(known)}")
    module = benchmarks.load(name)
    flags.adopt_module_key_flags(module)  # --help shows the flags of the main module alone
    del sys.argv[1]
    app.run(module.main, keep_programs=False)  # a compilation that is timed has to be one


if __name__ == "__main__":
    main(sys.argv[1:])
