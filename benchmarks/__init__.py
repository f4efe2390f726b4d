"""Subcommands of benchmark.py: every module or package with a `main`, its docstring's first line the summary."""

import ast
import importlib
import pathlib
import sys
from types import ModuleType


def subcommands() -> dict[str, str]:
    """Name and summary of every subcommand, in alphabetical order; imports none, so none can break the list."""
    found = {}
    folder = pathlib.Path(__file__).parent
    files = {path.stem: path for path in folder.glob("*.py")} | {
        path.parent.name: path for path in folder.glob("*/__init__.py")
    }
    for name, path in sorted(files.items()):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def load(name: str) -> ModuleType:
    """Imports a subcommand, which defines its flags; without a package that it needs the program ends and names it."""
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {name} needs the package {error.name!r}, which is not installed")
