"""Labels of a plot that do not cover each other; without flags, so that tests can import it."""

import itertools


def place_labels(axes, labels: dict[tuple[float, float], tuple[str, str]]) -> list:
    """Writes (text, colour) beside each point, in the first of some places that no other label covers."""
    texts: list = []
    for point, (text, color) in labels.items():
        written = axes.annotate(text, point, (0, 0), textcoords="offset points", ha="center", va="center", fontsize=8)
        written.set_color(color)
        for offset in itertools.product((9, -9, 18, -18, 27, -27, 36, -36), (0, 8, -8, 16, -16)):
            written.set_position(offset[::-1])
            here = written.get_window_extent()
            if not any(here.overlaps(other.get_window_extent()) for other in texts):
                break
        texts.append(written)
    return texts
