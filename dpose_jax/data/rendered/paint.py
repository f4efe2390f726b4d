"""Colours of the rendered scenes: cloth, skin, faces, hair, light and the background (ours).

Colours are float32 RGB in 0..255, (n, 3) for n pixels; positions are those of the template in metres.
"""

import functools

import cv2
import numpy as np

from dpose_jax.data.rendered import kernels
from dpose_jax.data.rendered import person as wear
from dpose_jax.data.rendered.scene import Scene, Solid
from dpose_jax.data.synthetic.scene import generator

_SKINS = np.array(
    [[246, 214, 190], [232, 190, 160], [214, 166, 130], [190, 138, 100], [142, 96, 68], [96, 62, 46], [66, 44, 36]],
    float,
)
_HAIRS = np.array(
    [
        [24, 20, 18],
        [44, 32, 24],
        [78, 52, 34],
        [128, 88, 52],
        [196, 160, 104],
        [136, 132, 128],
        [206, 204, 200],
        [130, 60, 34],
    ],
    float,
)
_TILE = 256  # side of the noise, px; a power of two


@functools.cache
def noise() -> np.ndarray:
    """(256, 256, 4) float32 noise that repeats, in about -1..1; channels are independent, detail of all sizes."""
    rng = np.random.Generator(np.random.PCG64(7))
    total: np.ndarray = np.zeros((_TILE, _TILE, 4), np.float32)
    for cells in (4, 8, 16, 32, 64, 128):
        grid = rng.standard_normal((cells, cells, 4)).astype(np.float32)
        grid = np.pad(grid, ((2, 2), (2, 2), (0, 0)), "wrap")
        step = _TILE // cells
        big = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total = total + big[2 * step : -2 * step, 2 * step : -2 * step] / cells**0.5
    return total / total.std()


def _sampled(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The noise at (u, v) in its pixels, (n, 4)."""
    return noise()[v.astype(np.int32) & (_TILE - 1), u.astype(np.int32) & (_TILE - 1)]


def vivid(rng: np.random.Generator) -> np.ndarray:
    """A colour, more often grey, dark or light than pure."""
    grey = 255.0 * rng.random() ** (1.5 if rng.random() < 0.5 else 0.7)
    mix = rng.random() ** 2.5
    return np.clip((1.0 - mix) * grey + mix * 255.0 * rng.random(3), 8.0, 250.0)


def cloth(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, photo: np.ndarray | None) -> np.ndarray:
    """Colours of a fabric at n points (u to the side, v up, m), printed, woven or cut from a photo."""
    base, other = vivid(rng), vivid(rng)
    kind, a, b, c = rng.random(4)
    size = 0.015 + 0.06 * a * a
    field = _sampled(u * (200 + 900 * b) + 255 * c, v * (200 + 900 * b) + 255 * a)
    share = np.zeros(len(u))
    if photo is not None and kind > 0.7:
        height, width = photo.shape[:2]
        rows = ((0.5 - v) * 500 + height * b).astype(int) % height
        return photo[rows, ((u + 0.5) * 500 + width * c).astype(int) % width].astype(np.float32)
    if kind < 0.12:
        share = (v / size % 2.0 < 1.0) * 1.0
    elif kind < 0.17:
        share = (u / size % 2.0 < 1.0) * 1.0
    elif kind < 0.25:
        share = 0.5 * (u / size % 2.0 < 0.9) + 0.5 * (v / size % 2.0 < 0.9)
    elif kind < 0.3:
        share = ((u / size % 1.0 - 0.5) ** 2 + (v / size % 1.0 - 0.5) ** 2 < 0.08) * 1.0
    elif kind < 0.38:
        share = np.clip(4.0 * field[:, 3], 0.0, 1.0)
    elif kind < 0.5:  # a print on the chest
        cells = (field[:, 2] > 0.2 * b) & (np.abs(u) < 0.05 + 0.08 * c) & (np.abs(v - 0.42) < 0.04 + 0.1 * a)
        share = cells * 1.0
    color = base + share[:, None] * (other - base)
    return color * (1.0 + 0.05 * (1 + a) * field[:, :1])


def skin_color(rng: np.random.Generator) -> np.ndarray:
    """A colour of skin, (3,)."""
    k = rng.random() * (len(_SKINS) - 1)
    low = int(k)
    return (_SKINS[low] + (k - low) * (_SKINS[low + 1] - _SKINS[low])) * (0.92 + 0.14 * rng.random())


def _face(rng, place: np.ndarray, skin: np.ndarray, hair: np.ndarray, person: wear.Person) -> np.ndarray:
    """Skin with brows, eyelids, lips, cheeks, nostrils, and a beard or glasses on some."""
    color = np.repeat(skin[None], len(place), 0)
    color *= 1.0 + 0.035 * _sampled(place[:, 0] * 700 + 200 * rng.random(), place[:, 1] * 700)[:, :1]
    u = rng.random(6)
    head = place[:, 1] > 0.69
    x, y, z = np.abs(place[head, 0]), place[head, 1], place[head, 2]
    front = z > 0.09
    face = color[head]

    def tint(where: np.ndarray, target: np.ndarray, share: float) -> None:
        face[where] += share * (target - face[where])

    tint(front & (((x - 0.045) / 0.03) ** 2 + ((y - 0.785) / 0.025) ** 2 < 1), skin * (1.0, 0.78, 0.76), 0.35)
    tint(front & (((x - 0.031) / 0.022) ** 2 + ((y - 0.823) / 0.013) ** 2 < 1), skin * 0.62, 0.55)
    brow = 0.843 + 0.004 * (x > 0.03) - 2.0 * (x - 0.03) ** 2
    tint(front & (np.abs(y - brow) < 0.0045 + 0.003 * u[0]) & (x > 0.012) & (x < 0.054), hair * 0.8, 0.75)
    if person.gender == "male" and u[1] < 0.45:
        edge = 0.768 + 0.5 * np.clip(x - 0.045, 0.0, 0.1)
        beard = (y < edge) & (y > 0.69) & (z > 0.045) & ~((x < 0.028) & (np.abs(y - 0.748) < 0.009))
        tint(beard & ((x > 0.02) | (y < 0.742) | (y > 0.757)), hair, 0.35 + 0.6 * u[2])
    tint(
        front & ((x / 0.027) ** 2 + ((y - 0.748) / 0.0095) ** 2 < 1),
        skin * (0.88, 0.5, 0.5),
        0.75 if u[3] < 0.5 else 0.45,
    )
    tint(front & (np.abs(y - 0.748) < 0.0022) & (x < 0.024), skin * 0.35, 0.8)
    tint(front & (((x - 0.009) / 0.006) ** 2 + ((y - 0.776) / 0.004) ** 2 < 1), skin * 0.35, 0.7)
    if u[4] < 0.2:
        lens = ((x - 0.032) / 0.026) ** 2 + ((y - 0.821) / 0.02) ** 2
        dark = u[5] < 0.6
        tint(front & (lens < 1) if dark else front & (np.abs(lens - 1) < 0.25), np.array([22.0, 22, 26]), 0.92)
        tint((np.abs(y - 0.826) < 0.004) & (x > 0.055) & (z > 0.05), np.array([22.0, 22, 26]), 0.9)
    color[head] = face
    return color


def _person_colors(rng, person: wear.Person, place, limbs, part, normals, photo) -> tuple[np.ndarray, np.ndarray]:
    """Colours (n, 3) and how folded the surface is (n,), of n pixels of a person."""
    material = wear.materials(place, limbs, part, person.outfit)
    skin, hair = skin_color(rng), _HAIRS[int(rng.random() * len(_HAIRS))] * (0.8 + 0.4 * rng.random())
    if person.age == "old" and rng.random() < 0.4:
        hair = _HAIRS[5 + int(2 * rng.random())]
    arm, leg = limbs[:, 0], limbs[:, 1]
    u = place[:, 0] * 0.9 + place[:, 2] * 0.6
    v = np.where(arm > -0.15, 0.45 - 0.28 * arm, place[:, 1])
    color = _face(rng, place, skin, hair, person)
    bottom_seed, one_piece = int(rng.integers(1 << 30)), person.outfit.skirt > 0 and rng.random() < 0.6
    top_seed = bottom_seed if one_piece else int(rng.integers(1 << 30))
    seeds = {wear.TOP: top_seed, wear.BOTTOM: bottom_seed, wear.JACKET: int(rng.integers(1 << 30))}
    for kind, seed in seeds.items():
        chosen = material == kind
        if chosen.any():
            color[chosen] = cloth(np.random.Generator(np.random.PCG64(seed)), u[chosen], v[chosen], photo)
    jeans = rng.random() < 0.3 and not one_piece and person.outfit.skirt == 0
    if jeans:
        shade = 0.5 + 0.8 * rng.random()
        chosen = material == wear.BOTTOM
        field = _sampled(u[chosen] * 900, v[chosen] * 900)[:, :1]
        worn = np.exp(-((leg[chosen] - 0.6) ** 2) / 0.2)[:, None]
        color[chosen] = np.array([62.0, 80, 118]) * shade * (1.0 + 0.08 * field + 0.35 * worn)
    for kind in (wear.SHOES, wear.SOCKS, wear.HAT, wear.GLOVES):
        color[material == kind] = vivid(rng)
    sole = vivid(rng) if rng.random() < 0.5 else np.array([225.0, 225, 222])
    color[(material == wear.SHOES) & (place[:, 1] < -0.792)] = sole
    locks = material == wear.LOCKS
    strands = _sampled(place[locks, 0] * 2500 + place[locks, 2] * 1800, place[locks, 1] * 150)[:, :1]
    color[locks] = hair * (1.0 + 0.22 * strands)
    eyes = material == wear.EYEBALL
    ahead = place[eyes] - np.array([0.031, 0.823, 0.128]) * np.stack(
        [np.sign(place[eyes, 0]), *np.ones((2, eyes.sum()))], 1
    )
    radius = np.hypot(ahead[:, 0], ahead[:, 1])
    iris = np.array([[70.0, 45, 28], [50, 80, 110], [60, 85, 50]])[int(3 * rng.random() ** 2)]
    color[eyes] = np.where((radius < 0.0028)[:, None], 12.0, np.where((radius < 0.006)[:, None], iris, 228.0))
    folded = np.isin(material, (wear.TOP, wear.BOTTOM, wear.JACKET)).astype(np.float32)
    return color, folded * (0.5 + 25.0 * max(person.outfit.loose))


def _thing_colors(rng, solid: Solid, where: np.ndarray, photo) -> np.ndarray:
    """Colours of the pixels `where`, (n, 2) rows and columns, of a thing."""
    if photo is not None and rng.random() < 0.8:
        height, width = photo.shape[:2]
        return photo[(where[:, 0] * 2 + int(height * rng.random())) % height, where[:, 1] * 2 % width].astype(
            np.float32
        )
    extent = max(float(np.ptp(where, axis=0).max()), 8.0)
    u, v = (where[:, 1] - where[:, 1].min()) / extent - 0.5, (where[:, 0].min() - where[:, 0]) / extent + 0.5
    return cloth(rng, u * 0.5, v * 0.5 + 0.2, None)


def paint(scene: Scene, background: np.ndarray, photo: np.ndarray | None) -> np.ndarray:
    """Paints the solids of a scene over a background.

    Args:
      scene: laid out.
      background: (H, W, 3) float32, changed in place.
      photo: (h, w, 3) uint8 to cut cloth from, or None.

    Returns:
      (H, W, 3) float32.
    """
    rng = generator(scene.settings, scene.index, 1)
    light, ambient = _light(rng)
    tone = 1.0 + 0.08 * rng.standard_normal(3)
    tone = tone / tone.mean() * (0.75 + 0.45 * rng.random())
    shadow = _occlusion(scene)
    _ground_shadow(rng, scene, background)
    for solid in scene.solids:
        inside = (scene.ids >= solid.first_id) & (scene.ids < solid.first_id + len(solid.faces))
        own = np.random.Generator(np.random.PCG64(int(rng.integers(1 << 60))))
        if not inside.any():
            continue
        where = np.argwhere(inside)
        ids, weights = scene.ids[inside] - solid.first_id, scene.weights[inside]
        if solid.person is None:
            color, folded = _thing_colors(own, solid, where, photo), np.zeros(len(where), np.float32)
            corners = solid.camera[solid.faces[ids]]
            normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
            normals *= (1.0, -1.0, -1.0) / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
            place = np.zeros((len(where), 3), np.float32)
        else:
            values = kernels.interpolate(solid.person.attributes, solid.faces, ids, weights)
            place, limbs, normals = values[:, :3], values[:, 3:6], values[:, 6:]
            normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
            part = solid.person.part[ids]
            color, folded = _person_colors(own, solid.person, place, limbs, part, normals, photo)
        normals = np.where(normals[:, 2:] < 0, -normals, normals)  # both sides of cloth and boards are lit
        if folded.any():
            creases = _sampled(place[:, 0] * 260 + place[:, 2] * 180 + 99 * own.random(), place[:, 1] * 150)[:, :3]
            normals = normals + 0.22 * folded[:, None] * creases
        lit = ambient + (1.15 - ambient) * np.clip(normals @ light, 0.0, None) + 0.1 * normals[:, 1]
        background[inside] = np.clip(color * (lit * shadow[inside])[:, None] * tone, 0.0, 255.0)
    return _smooth_edges(scene, background)


def _light(rng) -> tuple[np.ndarray, float]:
    """Direction to the light, world axes, and the share of light from everywhere."""
    light = rng.standard_normal(3)
    light[1:] = np.abs(light[1:]) * (1.0, 0.8)
    return light / np.linalg.norm(light), 0.35 + 0.45 * rng.random()


def _occlusion(scene: Scene) -> np.ndarray:
    """(H, W) float32 factor of light: surfaces that lie behind their neighbourhood are darker."""
    far = 3.0 * float(scene.solids[0].camera[:, 2].mean())
    depth = np.where(scene.inverse > 0, 1.0 / np.maximum(scene.inverse, 1e-6), far).astype(np.float32)
    around = cv2.blur(cv2.blur(depth, (9, 9)), (9, 9))
    return 1.0 - 0.45 * np.clip((depth - around) / 0.25, 0.0, 1.0)


def _ground_shadow(rng, scene: Scene, background: np.ndarray) -> None:
    """Darkens the background beside people, as on a wall or floor behind them; in half of the images."""
    shift, strength = (rng.random(2) - 0.5) * (0.2, 0.1) * scene.silhouette.shape[1], rng.random()
    if strength < 0.5:
        return
    mask = cv2.blur(cv2.blur((scene.ids >= 0).astype(np.float32), (11, 11)), (7, 7))
    move = np.array([[1.0, 0.0, shift[0]], [0.0, 1.0, abs(shift[1])]], np.float32)
    mask = cv2.warpAffine(mask, move, mask.shape[::-1])
    background *= 1.0 - 0.6 * strength * mask[..., None]


def _smooth_edges(scene: Scene, image: np.ndarray) -> np.ndarray:
    """Blurs the outlines of solids by a pixel, as a lens does."""
    owner = np.searchsorted([solid.first_id for solid in scene.solids], scene.ids, side="right").astype(np.uint8)
    edge = cv2.morphologyEx(owner, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    image[edge] = cv2.GaussianBlur(image, (3, 3), 0.8)[edge]
    return image
