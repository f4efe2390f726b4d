"""The picture of the study: AP over sampling steps and over latency, a line for each arm and way of sampling."""

import io

from matplotlib.figure import Figure

from dpose_jax.files import write_bytes

DARK, PLAIN = "with DARK", "without DARK"
STEPS, LATENCY = "sampling steps; 0: coarse branch", "latency, in multiples of the coarse branch's"


def write_plot(path: str, rows: list[dict]) -> None:
    """Draws mean AP with its standard error: over K with DARK and without, and with it over the latency.

    Args:
      rows: with `arm`, `reading` (`coarse`, `direct_2`, `direct_2 without DARK`), `AP`, `AP se` and `times_plain`.
    """
    figure = Figure(figsize=(16, 5), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, refine, across in zip(panels, (DARK, PLAIN, DARK), (STEPS, STEPS, LATENCY), strict=True):
        lines = _lines(rows, refine, across)
        for number, (name, points) in enumerate(lines.items()):
            at, mean, error = zip(*points, strict=True)
            style = {"color": f"C{number % 10}", "markersize": 4, "capsize": 3}
            axes.errorbar(at, mean, error, fmt="o-" if number < 10 else "s--", label=name, **style)
        axes.set(xlabel=across, ylabel="AP", title=refine)
        axes.grid(alpha=0.3)
        if across == STEPS:
            axes.set_xscale("symlog", base=2, linthresh=1)
            ticks = sorted({steps for points in lines.values() for steps, _, _ in points})
            axes.set_xticks(ticks, [str(steps) for steps in ticks])
    panels[0].legend(fontsize=7)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    write_bytes(path, data.getvalue())


def _lines(rows: list[dict], refine: str, across: str) -> dict[str, list[tuple[float, float, float]]]:
    """By arm and line: (x, AP, standard error) of each of its readings."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        reading, _, rest = row["reading"].partition(" ")
        if bool(rest) == (refine == PLAIN) and row["AP"] is not None:
            line, _, steps = reading.partition("_")
            at = int(steps or 0) if across == STEPS else row["times_plain"]
            lines.setdefault(f"{row['arm']}, {line}", []).append((at, row["AP"], row["AP se"] or 0))
    return lines
