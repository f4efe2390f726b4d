"""Sheets of pictures: captions, legends, grids and rows. Images are (height, width, 3) uint8 RGB."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

Color = tuple[int, int, int]
OUTLINE = (25, 25, 25)
PAPER, INK, FAINT = (250, 250, 250), (30, 30, 30), (110, 110, 110)
GAP = 12
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def label(text: str, width: int, color: Color, height: int = 26) -> np.ndarray:
    """A strip of paper with centred text, made smaller where it would not fit."""
    strip = np.full((height, width, 3), PAPER, np.uint8)
    (text_width, text_height), _ = cv2.getTextSize(text, _FONT, 0.5, 1)
    size = 0.5 * min(1, (width - 4) / max(text_width, 1))
    (text_width, text_height), _ = cv2.getTextSize(text, _FONT, size, 1)
    origin = ((width - text_width) // 2, (height + text_height) // 2)
    cv2.putText(strip, text, origin, _FONT, size, color, 1, cv2.LINE_AA)
    return strip


def legend(text: str, width: int, colors: Mapping[str, Color]) -> np.ndarray:
    """A strip with a text of at most 400 pixels and named colours, made smaller where it would not fit."""
    strip, x = np.full((34, max(width, 1000), 3), PAPER, np.uint8), GAP
    for word, color in {text: None, **colors}.items():
        if color is not None:
            cv2.line(strip, (x, 19), (x + 22, 19), OUTLINE, 8, cv2.LINE_AA)
            cv2.line(strip, (x, 19), (x + 22, 19), color, 5, cv2.LINE_AA)
            x += 34
        cv2.putText(strip, word, (x, 24), _FONT, 0.5, INK if color is None else FAINT, 1, cv2.LINE_AA)
        x += cv2.getTextSize(word, _FONT, 0.5, 1)[0][0] + 28
    used = x - 28 + GAP
    if used > width:
        return cv2.resize(strip[:, :used], (width, 34 * width // used), interpolation=cv2.INTER_AREA)
    return strip[:, :width]


def grid(cells: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Cells of one size on paper, GAP apart."""
    height, width = cells[0].shape[:2]
    rows = -(-len(cells) // columns)
    sheet = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), PAPER, np.uint8)
    for i, cell in enumerate(cells):
        y, x = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        sheet[y : y + height, x : x + width] = cell
    return sheet


def rows_sheet(
    rows: list[list[np.ndarray]], titles: Sequence[str], captions: Sequence[str] | None = None
) -> np.ndarray:
    """Rows of panels under column titles, each row's caption under its first panel."""
    if any(len(row) != len(titles) for row in rows):
        raise ValueError(f"titles: must be {len(rows[0])}, one a column, got {list(titles)}")
    width = rows[0][0].shape[1]
    head = grid([label(title, width, INK) for title in titles], len(titles))[GAP // 2 : -GAP]
    cells = [panel for row in rows for panel in row]
    if captions is not None:
        texts = [text for caption in captions for text in (caption, *[""] * (len(titles) - 1))]
        feet = [label(text, width, FAINT, 22) for text in texts]
        cells = [np.concatenate(pair) for pair in zip(cells, feet, strict=True)]
    return np.concatenate([head, grid(cells, len(titles))])
