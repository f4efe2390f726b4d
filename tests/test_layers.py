"""The rooms of the package in order: each imports from those before it alone, so that no two import each other."""

import ast
import pathlib

import dpose_jax

ROOT = pathlib.Path(dpose_jax.__file__).parent
ORDER = (
    *("typed_fields", "pose", "recipe", "runtime", "diffusion", "models", "workdir", "visualization", "data"),
    *("evaluation", "inference", "training", "export", "app"),
)


def imported(path: pathlib.Path) -> set[str]:
    """The rooms that a file imports from, also inside of its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("dpose_jax.")}
    # What the package itself gives on demand.
    return {"inference" if name == "Predictor" else name for name in found} & set(ORDER)


def test_rooms_import_from_earlier_rooms_alone():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room != "__init__":
            wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in imported(path) if rank(name) > rank(room)]
    assert not wrong, wrong


def rank(room: str) -> int:
    return ORDER.index(room)


def test_every_room_has_its_place():
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert rooms - {"__init__"} == set(ORDER)
    loose = {path.stem for path in ROOT.glob("*.py")} - {"__init__"}
    assert len(loose) <= 4, loose
