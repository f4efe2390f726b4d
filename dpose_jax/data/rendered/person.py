"""One rendered person: shape, clothes, hair and things carried, posed as triangles in world axes (ours)."""

import functools
from typing import NamedTuple

import numpy as np

from dpose_jax.data.rendered import kernels
from dpose_jax.data.rendered.body import AGES, BODY, EYES, GENDERS, HAIR, LEVELS, RACES, SKIRT, Body, load_body
from dpose_jax.data.rendered.posing import Pose, move_bones, turn_bones

SKIN, TOP, BOTTOM, SHOES, LOCKS, EYEBALL, SOCKS, JACKET, HAT, GLOVES = range(10)  # materials
_OFF = -0.3  # of the limb coordinates, where a vertex is on no such limb


class Outfit(NamedTuple):
    """What a person wears. Lengths along arms and legs: 0 at the root, 1 at elbow or knee, 2 at wrist or ankle.

    Heights on the trunk: 0 at the hips, 1 at the neck.
    """

    sleeve: float  # below 0: none
    jacket: float  # half the width of its opening, m; 0: no jacket
    neck: float  # depth of the neckline, trunk heights
    hem: float  # of the top
    waist: float  # of the bottom
    leg: float
    skirt: float  # its length; 0: none
    sock: float  # where it ends
    shoes: bool
    gloves: bool
    hair: float  # lowest template height of the hair, m; 1 and above: bald or shorn
    hat: bool
    loose: tuple[float, float]  # distance of top and bottom from the skin, m


class Person(NamedTuple):
    """A posed person; the origin is between the hips, V vertices, F faces."""

    vertices: np.ndarray  # (V, 3) float32 world axes, m, clothed
    keep: np.ndarray  # (V,) float32, see kernels.rasterize
    faces: np.ndarray  # (F, 3) int32: those of the skirt last
    part: np.ndarray  # (F,) uint8
    attributes: np.ndarray  # (V, 9) float32: template position, arm, leg and trunk coordinate, normal in world axes
    joints: np.ndarray  # (17, 3) float32, of the body without clothes
    things: list[tuple[np.ndarray, np.ndarray]]  # what is carried: vertices (n, 3) in world axes and faces
    outfit: Outfit
    stature: float  # m
    gender: str
    age: str


@functools.cache
def template() -> np.ndarray:
    """(V, 6) float32: position in an average adult's rest, m, and the arm, leg and trunk coordinates; see `Outfit`."""
    body = load_body()
    vertices = body.shape({"caucasian-male-young": 1.0, "universal-male-young-averagemuscle-averageweight": 1.0})
    at = dict(zip(body.bones, body.heads(vertices), strict=True))
    strongest = np.array(body.bones)[body.bone_index[:, 0]]
    limbs = np.full((len(vertices), 2), _OFF, np.float32)
    for column, chain in enumerate((("upperarm", "lowerarm", "hand"), ("thigh", "calf", "foot"))):
        for side in "lr":
            names = [f"{name}_{side}" for name in chain]
            for k, (start, end) in enumerate(zip(names, names[1:], strict=False)):
                rows, along = strongest == start, at[end] - at[start]
                limbs[rows, column] = k + ((vertices[rows] - at[start]) @ along / (along @ along)).clip(-0.2, 1.1)
    fingers = np.array([name.endswith(("_l", "_r")) and name[:4] in _HAND for name in strongest])
    limbs[fingers, 0] = 2.3
    limbs[np.isin(strongest, ("foot_l", "foot_r", "ball_l", "ball_r")), 1] = 2.3
    low, high = at["thigh_l"][1], at["neck_01"][1]
    trunk = (vertices[:, 1:2] - low) / (high - low)
    # The skirt's vertices move with the legs; its own coordinate is its height.
    skirt = np.unique(body.faces[body.part == SKIRT])
    limbs[skirt, 1] = 2.0 * (low - vertices[skirt, 1]) / (low - at["foot_l"][1])
    limbs[skirt, 0] = _OFF
    return np.concatenate([vertices, limbs, trunk], 1).astype(np.float32)


@functools.cache
def shoe() -> np.ndarray:
    """(V, 3) float32 displacements in rest, m, that lay the toes onto the tip of a shoe, an ellipsoid."""
    place, foot = template()[:, :3], template()[:, 4] > 2.05
    centre = np.stack([0.202 * np.sign(place[:, 0]), np.full(len(place), -0.795), np.full(len(place), 0.1)], 1)
    away = place - centre
    scaled = np.linalg.norm(away / (0.054, 0.034, 0.125), axis=1, keepdims=True)
    tip = centre + away / np.maximum(scaled, 0.1)
    tip[:, 1] = np.maximum(tip[:, 1], -0.822)
    share = np.clip((place[:, 2:] - 0.1) / 0.04, 0.0, 1.0) * foot[:, None]
    return (share * (tip - place)).astype(np.float32)


_HAND = ("hand", "inde", "midd", "ring", "pink", "thum")


def scalp(place: np.ndarray) -> np.ndarray:
    """(n,) bool: is a template position (n, 3) on the hairy part of the head? The line runs from nape to forehead."""
    x, y, z = place.T
    line = 0.765 + 0.115 * np.clip((z - 0.02) / 0.11, 0.0, 1.0)
    ear = (np.abs(x) > 0.071) & (y < 0.84) & (z > 0.02)
    return (y > line) & ~ear


def materials(place: np.ndarray, limbs: np.ndarray, part: np.ndarray, outfit: Outfit) -> np.ndarray:
    """The material of n points of the body, (n,) uint8.

    Args:
      place: (n, 3) template positions.
      limbs: (n, 3) arm, leg and trunk coordinates.
      part: (n,) part of the mesh.
      outfit: what the person wears.
    """
    x, y, z = place.T
    arm, leg, trunk = limbs.T
    off_arm = arm < -0.15
    material = np.zeros(len(place), np.uint8)
    if outfit.sock < 2:
        material[leg > outfit.sock] = SOCKS
    if outfit.shoes:
        material[(leg > 2.12) | ((leg > 1.9) & (y < -0.755))] = SHOES
    if outfit.skirt == 0:
        material[off_arm & (trunk < outfit.waist) & (leg < outfit.leg)] = BOTTOM
    front = np.where(z > 0.02, 1.0, 0.35)
    collar = 1.02 - outfit.neck * front * np.exp(-((x / 0.09) ** 2))
    # A top without sleeves leaves the shoulders bare.
    strap = (outfit.sleeve >= 0) | (np.abs(x) < 0.13)
    top = np.where(off_arm, (trunk > outfit.hem) & (trunk < collar) & strap, arm < outfit.sleeve)
    material[top & (leg < 0.6)] = TOP
    if outfit.jacket:
        closed = (np.abs(x) > outfit.jacket) | (z < 0.02)
        jacket = np.where(off_arm, (trunk > outfit.hem - 0.1) & (trunk < 1.03) & closed, arm < 1.95)
        material[jacket & (leg < 0.6)] = JACKET
    if outfit.gloves:
        material[arm > 1.95] = GLOVES
    hairy = scalp(place)
    if outfit.hair < 1.1:
        material[hairy] = LOCKS
    if outfit.hat:
        material[hairy & (y > 0.85)] = HAT
    material[part == SKIRT] = BOTTOM
    material[part == HAIR] = LOCKS
    material[part == EYES] = EYEBALL
    return material


def _pick(draw: float, values: tuple[float, ...], shares: tuple[float, ...]) -> float:
    """One of the values by a uniform draw, with these shares."""
    return values[min(int(np.searchsorted(np.cumsum(shares), draw, side="right")), len(values) - 1)]


def draw_outfit(rng: np.random.Generator, gender: str) -> Outfit:
    """A random outfit."""
    u = rng.random(16).tolist()
    female = gender == "female"
    dress = female and u[0] < 0.2
    skirt = (0.5 + 1.2 * u[1]) if dress or (female and u[0] < 0.32) else 0.0
    jacket = u[2] < 0.22 and not dress
    styles = (1.2, 1.0, 0.8, 0.74, 0.66, 0.55)  # bald, shorn, short, to the chin, to the shoulders, longer
    share = (0.02, 0.06, 0.27, 0.2, 0.25, 0.2) if female else (0.1, 0.3, 0.5, 0.06, 0.04, 0.0)
    wide = (0.004, 0.012, 0.03)
    return Outfit(
        sleeve=_pick(u[3], (-0.1, 0.05, 0.45, 0.7, 1.1, 2.0), (0.1, 0.05, 0.25, 0.2, 0.06, 0.34)),
        jacket=0.02 + 0.06 * u[4] if jacket else 0.0,
        neck=0.05 + 0.35 * u[5] ** 2,
        hem=0.1 if dress else float(np.interp(u[6], (0, 0.1, 0.4, 1), (0.5, 0.3, 0.1, -0.25))),
        waist=0.12 + 0.3 * u[7],
        leg=_pick(u[8], (0.15, 0.4, 0.7, 0.95, 1.4, 1.95, 2.05), (0.05, 0.1, 0.09, 0.1, 0.04, 0.32, 0.3)),
        skirt=skirt,
        sock=1.2 + 0.8 * u[9] if u[9] < 0.6 else 2.0,
        shoes=bool(u[10] < 0.9),
        gloves=bool(u[11] < 0.06),
        hair=_pick(u[12], styles, share) + 0.02 * u[13],
        hat=bool(u[14] < 0.2),
        loose=(wide[int(3 * u[15] ** 1.3)] + (0.015 if jacket else 0.0), wide[int(3 * rng.random() ** 1.3)]),
    )


@functools.cache
def _shown(hair: bool, skirt: bool) -> tuple[np.ndarray, np.ndarray]:
    """The faces (F, 3) of a person with or without hair and skirt, and their parts (F,)."""
    body = load_body()
    shown = np.isin(body.part, [BODY, EYES] + [HAIR] * hair + [SKIRT] * skirt)
    return np.ascontiguousarray(body.faces[shown]), body.part[shown]


def make_person(rng: np.random.Generator, pose: Pose) -> Person:
    """A random person in a pose."""
    body, fixed = load_body(), template()
    gender, age, rest = _draw_shape(rng, body)
    outfit = draw_outfit(rng, gender)
    heads = body.heads(rest)
    turns = turn_bones(body, heads, pose)
    moves = move_bones(body, heads, turns).astype(np.float32)
    turned = turns.astype(np.float32)
    rig = body.bone_index, body.bone_weight, turned, moves
    vertices = kernels.skin(rest, *rig, True)
    joints = body.joints @ vertices  # of the bare body: clothes do not move them
    if outfit.shoes:
        vertices += kernels.skin(shoe(), *rig, False)
        rest = rest + shoe()
    normals = kernels.skin(kernels.vertex_normals(rest, body.faces), *rig, False)
    clothed = vertices + _thickness(rng, fixed, body.vertex_part, outfit)[:, None] * normals
    keep = np.ones(len(rest), np.float32)
    hair, skirt = body.vertex_part == HAIR, body.vertex_part == SKIRT
    x, y, z = fixed[hair, :3].T
    ragged = 0.012 * np.sin(x * 160 + 7 * rng.random()) * np.sin(z * 130)
    face = np.where(z > 0.04, (x / 0.07) ** 2 + ((y - 0.79) / 0.095) ** 2 - 1.0, 1.0)  # no curtain before the face
    keep[hair] = np.minimum(y - outfit.hair + ragged, 0.05 * face)
    keep[skirt] = outfit.skirt - fixed[skirt, 4]
    faces, part = _shown(outfit.hair < 1, outfit.skirt > 0)
    middle = joints[11:13].mean(0)
    attributes = np.concatenate([fixed, normals], 1)
    return Person(
        vertices=clothed - middle,
        keep=keep,
        faces=faces,
        part=part,
        attributes=attributes,
        joints=joints - middle,
        things=_things(rng, dict(zip(body.bones, zip(heads, turns, moves - middle, strict=True), strict=True)), outfit),
        outfit=outfit,
        stature=float(rest[:, 1].max() - rest[:, 1].min()),
        gender=gender,
        age=age,
    )


def _draw_shape(rng: np.random.Generator, body: Body) -> tuple[str, str, np.ndarray]:
    """Gender, main age and rest vertices."""
    gender = GENDERS[int(2 * rng.random())]
    age, other = AGES[:2] if rng.random() < 0.15 else AGES[1:]
    share = rng.random() * (0.5 if age == "child" else 0.9)
    first = RACES[int(3 * rng.random())]
    muscle, weight = (LEVELS[int(np.searchsorted((0.25, 0.75), rng.random()))] for _ in range(2))
    build, height = 1.1 * rng.random(), 1.4 * rng.random() - 0.7
    mix: dict[str, float] = {}
    for each, part in ((age, 1.0 - share), (other, share)):
        mix[f"{first}-{gender}-{each}"] = part
        mix[f"universal-{gender}-{each}-{muscle}muscle-{weight}weight"] = part * build
        mean = f"universal-{gender}-{each}-averagemuscle-averageweight"
        mix[mean] = mix.get(mean, 0.0) + part * (1.0 - build)
        end = "max" if height > 0 else "min"
        mix[f"{gender}-{each}-averagemuscle-averageweight-{end}height"] = part * abs(height)
    return gender, age if share < 0.5 else other, body.shape(mix)


def _thickness(rng, fixed: np.ndarray, part: np.ndarray, outfit: Outfit) -> np.ndarray:
    """(V,) float32 distance in m of the clothes and the hair from the skin."""
    material = materials(fixed[:, :3], fixed[:, 3:], part, outfit)
    top, bottom = outfit.loose
    flared = bottom * (0.6 + 0.5 * np.clip(fixed[:, 4], 0.0, 2.0) * rng.random())
    volume = 0.004 + 0.02 * rng.random() if outfit.hair < 1.0 else 0.001
    by_material = np.array([0, top, bottom, 0.008, volume, 0, 0.002, top + 0.008, volume + 0.008, 0.004], np.float32)
    thickness = by_material[material]
    thickness[material == BOTTOM] = flared[material == BOTTOM]
    thickness[part == HAIR] = 0.5 * volume
    thickness[part == SKIRT] = 0.005 + 0.05 * rng.random() * np.clip(fixed[part == SKIRT, 4], 0.0, 2.0)
    waves = np.sin(fixed[:, :3] @ rng.normal(0.0, 22.0, 3) + 6.0 * rng.random())
    waves *= np.sin(fixed[:, :3] @ rng.normal(0.0, 35.0, 3))
    return (thickness * (1.0 + 0.45 * waves)).astype(np.float32)


def box(size: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (8, 3) and faces (12, 3) of a box around the origin."""
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]) * size
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    return corners, np.array([[q[0], q[k], q[k + 1]] for q in quads for k in (1, 2)], np.int32)


def ball(radii: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of an ellipsoid around the origin: 8 rings of 12."""
    down, round_ = np.meshgrid(np.linspace(0.0, np.pi, 9), np.linspace(0.0, 2 * np.pi, 13), indexing="ij")
    points = np.stack([np.sin(down) * np.cos(round_), np.cos(down), np.sin(down) * np.sin(round_)], -1)
    first = (np.arange(8)[:, None] * 13 + np.arange(12)).ravel()
    faces = np.concatenate(
        [np.stack([first, first + 1, first + 13], 1), np.stack([first + 1, first + 14, first + 13], 1)]
    )
    return points.reshape(-1, 3) * radii, faces.astype(np.int32)


def _things(rng: np.random.Generator, bones: dict, outfit: Outfit) -> list[tuple[np.ndarray, np.ndarray]]:
    """Things on bones: a brim, a bun, a bag, and what a hand holds."""
    found = []

    def add(shape, bone: str, offset: tuple[float, float, float], turn: np.ndarray | None = None):
        head, turns, move = bones[bone]
        points = shape[0] if turn is None else shape[0] @ turn.T
        found.append((((points + head + offset) @ turns.T + move).astype(np.float32), shape[1]))

    u = rng.random(6)
    if outfit.hat and u[0] < 0.6:
        add(ball((0.085, 0.006, 0.08)), "head", (0.0, 0.085, 0.12))
    if 0.6 < outfit.hair < 0.78 and u[1] < 0.3:
        add(ball((0.045, 0.045, 0.045)), "head", (0.0, 0.08, -0.11))
    if u[2] < 0.12:
        add(box((0.3, 0.42, 0.16)), "spine_03", (0.0, 0.1, -0.21))
    if u[3] < 0.35:
        side = "lr"[int(2 * rng.random())]
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        kind = int(6 * u[4])
        shape = (
            box((0.07, 0.14, 0.01)),  # phone
            box((0.03, 0.75, 0.03)),  # stick
            ball((0.11, 0.11, 0.11)),
            box((0.3, 0.25, 0.1)),  # bag
            ball((0.13, 0.17, 0.01)),  # racket or plate
            box((0.06, 0.1, 0.06)),  # cup
        )[kind]
        sign = 1.0 if side == "l" else -1.0
        away = 0.14 if kind in (2, 4) else 0.09
        add(shape, f"hand_{side}", (sign * 0.35 * away, -0.35 * away, away), turn)
    return found
