"""Subcommands of benchmark.py: each module or package here with a `main`; its docstring's first line is the summary."""

import ast
import importlib
import pathlib
import sys
from types import ModuleType

EXTRAS = {"matplotlib": 'pip install -e ".[benchmark]"'}


def subcommands() -> dict[str, str]:
    """Name and summary of every subcommand, sorted. The files are parsed, not imported: none can break the list."""
    folder, found = pathlib.Path(__file__).parent, {}
    for path in (*folder.glob("*.py"), *folder.glob("*/__init__.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            name = path.parent.name if path.stem == "__init__" else path.stem
            found[name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return dict(sorted(found.items()))


def load(name: str) -> ModuleType:
    """Imports a subcommand, which defines its flags. Exits with the package's name if one that it needs is missing."""
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        way = EXTRAS.get(package, f"pip install {package}")
        sys.exit(f"error: {name} needs the package {package!r}, which is not installed: {way}")
