"""Pictures of poses, heatmaps, masks and the denoising, drawn with OpenCV.

Images, crops and sheets are (height, width, 3) uint8 RGB, joints (x, y) pixels of theirs with centres at integers.
Arguments are never written to. `warp` is "unbiased" or "rounded": how heatmap pixels lie on the crop.
"""

import colorsys
import functools
from collections.abc import Sequence

import cv2
import numpy as np
from numpy import ndarray

from dpose_jax.pose.joint_names import left_first, side_and_part
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.visualization.grid import GAP, INK, OUTLINE, PAPER, Color, grid, label, legend, rows_sheet
from dpose_jax.workdir.files import placed, write_bytes

# From Okabe and Ito's palette, distinct in all common kinds of colour blindness; the centre is white.
SIDE_COLORS = {"left": (230, 159, 0), "right": (60, 165, 245), "centre": (245, 245, 245)}
MASK_COLORS = ((86, 180, 233), (240, 228, 66))  # joints, limbs
CELL_HEIGHT = 256  # crops lower than this are enlarged to at least it
SHEET_WIDTH = 1600
_SHIFT = 4
_BESIDE = 1e4  # pixels beside the image, to which joints are moved that lie further off: OpenCV takes 32-bit numbers


@functools.cache  # of each person that is drawn
def joint_sides(joint_set: JointSet) -> tuple[str, ...]:
    """J of "left", "right", "centre": by its place in a flip pair (see `left_first`), without partner by its name."""
    by_name = {"l": "left", "r": "right", "": "centre"}
    sides = [by_name[side_and_part(name)[0]] for name in joint_set.joints]
    for left, right in left_first(joint_set):
        sides[left], sides[right] = "left", "right"
    return tuple(sides)


def joint_colors(joint_set: JointSet) -> ndarray:
    """(J, 3) uint8 RGB, one colour a joint for heatmaps: hues apart by the golden ratio, neighbours differ most."""
    hues = [(0.08 + 0.618034 * j) % 1 for j in range(joint_set.num_joints)]
    return np.array([[round(255 * v) for v in colorsys.hsv_to_rgb(h, 0.85, 1)] for h in hues], np.uint8)


def draw_pose(
    image: ndarray, joints: ndarray, joint_set: JointSet, *, shown: ndarray | None = None, thickness: int | None = None
) -> ndarray:
    """Draws one person on a copy of an image: limbs and joints coloured by side, with a dark outline.

    Joints, (J, 2), are left out where they are not finite, or where `shown`, (J,), is not above 0. Limbs are
    `thickness` pixels wide, by default 1/40 of the joints' extent, but 1/600 to 1/110 of the image's longer side.
    """
    image = np.ascontiguousarray(image).copy()
    points = np.asarray(joints, np.float64)
    drawn = np.asarray(np.isfinite(points).all(axis=1)) & (True if shown is None else np.asarray(shown) > 0)
    if thickness is None:
        extent = np.ptp(points[drawn], axis=0).max() if drawn.sum() > 1 else 0
        side = max(image.shape[:2])
        thickness = max(1, round(min(side / 110, max(extent / 40, side / 600))))
    border = max(1, thickness // 2) + thickness % 2
    size = np.array(image.shape[1::-1])
    near = np.clip(np.where(drawn[:, None], points, 0), -_BESIDE, size + _BESIDE)
    fixed = np.round(near * 2**_SHIFT).astype(int)
    sides = joint_sides(joint_set)
    for a, b in joint_set.limbs:
        if drawn[a] and drawn[b]:
            ends, touched = (fixed[a].tolist(), fixed[b].tolist()), {sides[a], sides[b]} - {"centre"}
            color = SIDE_COLORS[touched.pop() if len(touched) == 1 else "centre"]
            cv2.line(image, *ends, OUTLINE, thickness + border, cv2.LINE_AA, _SHIFT)
            cv2.line(image, *ends, color, thickness, cv2.LINE_AA, _SHIFT)
    for j in np.flatnonzero(drawn):
        _draw_disc(image, fixed[j], thickness + border / 2, OUTLINE)
        _draw_disc(image, fixed[j], thickness, SIDE_COLORS[sides[j]])
    return image


def _draw_disc(image: ndarray, centre: ndarray, radius: float, color: Color) -> None:
    """A disc about a fixed-point centre, as a polygon: cv2.circle turns small anti-aliased discs into diamonds."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    rim = centre + radius * 2**_SHIFT * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillConvexPoly(image, np.round(rim).astype(np.int32), color, cv2.LINE_AA, _SHIFT)


def person_caption(annotation_id: int, oks: float | None = None, pck: float | None = None) -> str:
    """The text under a person, e.g. `#1268  OKS .87  PCK .93`; numbers are fractions, None leaves one out."""
    parts = [f"{name} {value:.2f}" for name, value in (("OKS", oks), ("PCK", pck)) if value is not None]
    return "  ".join([f"#{annotation_id}", *parts])


def prediction_sheet(
    crops: ndarray, predicted: ndarray, truth: ndarray, visible: ndarray, joint_set: JointSet, captions: Sequence[str]
) -> ndarray:
    """A grid of N >= 1 persons: joints (N, J, 2) of the prediction left, of the truth, if `visible` (N, J), right."""
    cells = []
    for crop, found, true, shown, caption in zip(crops, predicted, truth, visible, captions, strict=True):
        left, right = _pose_panel(crop, found, joint_set), _pose_panel(crop, true, joint_set, shown)
        both = np.concatenate([left, np.full((len(left), 3, 3), PAPER, np.uint8), right], axis=1)
        cells.append(np.concatenate([both, label(caption, both.shape[1], INK)]))
    sheet = grid(cells, max(1, min(len(cells), (SHEET_WIDTH - GAP) // (cells[0].shape[1] + GAP))))
    colors = {side if side == "centre" else f"person's {side}": color for side, color in SIDE_COLORS.items()}
    return np.concatenate([legend("prediction | ground truth", sheet.shape[1], colors), sheet])


def heatmap_sheet(
    crops: ndarray,
    heatmaps: ndarray,
    keypoint_masks: ndarray,
    limb_masks: ndarray,
    joint_set: JointSet,
    *,
    warp: str = "unbiased",
    captions: Sequence[str] | None = None,
) -> ndarray:
    """One row a person: crop, heatmaps (N, H, W, J), clipped to [0, 1], M^kps and M^ske, (N, H, W, 1) in [0, 1]."""
    rows = []
    for i, crop in enumerate(crops):
        scale, big = _enlarge(crop)
        panels = [big, overlay_heatmaps(crop, heatmaps[i], joint_set, scale=scale, warp=warp)]
        for mask, color in zip((keypoint_masks[i], limb_masks[i]), MASK_COLORS, strict=True):
            spread = _spread(mask, big.shape[:2], scale, warp, cv2.INTER_NEAREST)
            tinted = _blend(big, np.array(color, np.float32), np.full_like(spread, 0.35))
            panels.append(_blend(_dimmed(big), tinted, np.clip(spread, 0, 1)))
        rows.append(panels)
    return rows_sheet(rows, ("crop", "heatmaps", "joint mask", "limb mask"), captions)


def denoising_strip(
    crops: ndarray,
    trajectory: ndarray,
    keypoints: ndarray,
    joint_set: JointSet,
    titles: Sequence[str],
    *,
    truth: ndarray | None = None,
    visible: ndarray | None = None,
    warp: str = "unbiased",
) -> ndarray:
    """One column a step, one row a person: the step's heatmaps and decoded joints over the crop.

    S steps have heatmaps (S, N, H, W, J), clipped to [0, 1], joints (S, N, J, 2) in crop pixels, of which NaNs are not
    drawn, and titles. With `truth`, (N, J, 2), a last column shows its joints where `visible`, (N, J), is above 0.
    """
    rows = []
    for i, crop in enumerate(crops):
        scale, panels = _enlarge(crop)[0], []
        for maps, joints in zip(trajectory[:, i], keypoints[:, i], strict=True):
            base = overlay_heatmaps(crop, maps, joint_set, scale=scale, warp=warp)
            panels.append(draw_pose(base, _enlarge_joints(joints, scale), joint_set, thickness=2))
        if truth is not None:
            panels.append(_pose_panel(crop, truth[i], joint_set, None if visible is None else visible[i]))
        rows.append(panels)
    return rows_sheet(rows, [*titles, *(["ground truth"] if truth is not None else [])])


def overlay_heatmaps(
    crop: ndarray, heatmaps: ndarray, joint_set: JointSet, *, scale: int = 1, warp: str = "unbiased"
) -> ndarray:
    """The crop, enlarged and in dark grey, with heatmaps (H, W, J), clipped to [0, 1], each in its joint's colour."""
    _, big = _enlarge(crop, scale)
    strength = np.clip(np.asarray(heatmaps, np.float32), 0, 1)
    color = strength @ joint_colors(joint_set).astype(np.float32)  # mixed by strength where joints overlap
    color /= np.maximum(strength.sum(axis=-1, keepdims=True), 1e-6)
    strongest = strength.max(axis=-1, keepdims=True)
    alpha, premultiplied = (_spread(maps, big.shape[:2], scale, warp) for maps in (strongest, strongest * color))
    return _blend(_dimmed(big), premultiplied / np.maximum(alpha, 1e-6), 0.9 * alpha)


def write_png(path: str, image: ndarray) -> None:
    """Writes (h, w, 3) uint8 RGB as a PNG, atomically, and makes its folder; ValueError for any other array."""
    with placed(path):
        content = encode_png(image)
    write_bytes(path, content)


def encode_png(image: ndarray) -> bytes:
    """(h, w, 3) uint8 RGB as the content of a PNG file; ValueError for any other array."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (h, w, 3) uint8, got {image.shape} {image.dtype}")
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def _enlarge(crop: ndarray, scale: int | None = None) -> tuple[int, ndarray]:
    """The factor and the enlarged crop; by default the least factor that makes it CELL_HEIGHT high."""
    scale = scale or -(-CELL_HEIGHT // len(crop))
    return scale, cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def _enlarge_joints(joints: ndarray, scale: int) -> ndarray:
    # Pixel centres are at integers, so pixel 0 covers -.5 .. .5 before and after.
    return (np.asarray(joints, np.float64) + 0.5) * scale - 0.5


def _pose_panel(crop: ndarray, joints: ndarray, joint_set: JointSet, shown: ndarray | None = None) -> ndarray:
    scale, big = _enlarge(crop)
    return draw_pose(big, _enlarge_joints(joints, scale), joint_set, shown=shown)


def _dimmed(image: ndarray) -> ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, axis=2)
    return (grey * 0.55).astype(np.uint8)


def _spread(
    maps: ndarray, size: tuple[int, int], scale: int, warp: str, interpolation: int = cv2.INTER_LINEAR
) -> ndarray:
    """Heatmap-sized (H, W, C) onto the enlarged crop (height, width, C), pixel centres where the warp puts them."""
    if warp not in ("unbiased", "rounded"):
        raise ValueError(f"warp={warp!r}: must be 'unbiased' or 'rounded'")
    maps = np.asarray(maps, np.float32)
    small, crop = np.array(maps.shape[1::-1]), np.array(size[::-1]) // scale
    step = (crop - 1) / np.maximum(small - 1, 1) if warp == "unbiased" else crop / small
    to_big = np.column_stack([np.diag(step * scale), np.full(2, (scale - 1) / 2)])
    spread = cv2.warpAffine(maps, to_big, size[::-1], flags=interpolation, borderMode=cv2.BORDER_REPLICATE)
    return spread.reshape(*size, maps.shape[2])


def _blend(image: ndarray, color: ndarray, alpha: ndarray) -> ndarray:
    return np.clip(np.round(image * (1 - alpha) + color * alpha), 0, 255).astype(np.uint8)
