"""The picture of the study: AP over sampling steps, a line for each arm and way of sampling."""

import io

from matplotlib.figure import Figure

from dpose_jax.files import write_bytes


def write_plot(path: str, rows: list[dict]) -> None:
    """Draws mean AP with its standard error over K, one panel with DARK and one without; 0 steps is the coarse branch.

    Args:
      rows: with `arm`, `reading` (`coarse`, `direct_2`, `direct_2 without DARK`), `AP` and `AP se`.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title in zip(panels, ("with DARK", "without DARK"), strict=True):
        lines: dict[str, list[tuple[int, float, float]]] = {}
        for row in rows:
            reading, _, rest = row["reading"].partition(" ")
            if bool(rest) == (title == "without DARK") and row["AP"] is not None:
                line, _, steps = reading.partition("_")
                lines.setdefault(f"{row['arm']}, {line}", []).append((int(steps or 0), row["AP"], row["AP se"] or 0))
        for number, (name, points) in enumerate(lines.items()):
            at, mean, error = zip(*points, strict=True)
            style = {"color": f"C{number % 10}", "markersize": 4, "capsize": 3}
            axes.errorbar(at, mean, error, fmt="o-" if number < 10 else "s--", label=name, **style)
        axes.set(xlabel="sampling steps; 0: coarse branch", ylabel="AP", title=title)
        axes.set_xscale("symlog", base=2, linthresh=1)
        ticks = sorted({steps for points in lines.values() for steps, _, _ in points})
        axes.set_xticks(ticks, [str(steps) for steps in ticks])
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    write_bytes(path, data.getvalue())
