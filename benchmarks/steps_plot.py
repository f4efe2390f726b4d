"""The picture of the steps benchmark: accuracy over milliseconds, a line an update."""

import io

from matplotlib.figure import Figure

from dpose_jax.workdir.files import write_bytes

METRICS = ("AP", "PCK@0.2")


def write_plot(path: str, rows: list[dict]) -> None:
    """Draws AP and PCK over the latency of one person; every line begins at the coarse branch, where there is one.

    Args:
      rows: with `update`, `steps`, `ms` and the metrics, fractions or None.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    coarse = [row for row in rows if row["update"] == "coarse"]
    updates = list(dict.fromkeys(row["update"] for row in rows if row["update"] != "coarse"))
    for axes, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        for update in updates:
            line = coarse + [row for row in rows if row["update"] == update]
            line = [row for row in line if row[metric] is not None]
            axes.plot([row["ms"] for row in line], [row[metric] for row in line], "o-", label=update, markersize=4)
            for row in line:
                place = row["ms"], row[metric]
                axes.annotate(str(row["steps"]), place, xytext=(3, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel="milliseconds a person, batch 1", ylabel=metric)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    write_bytes(path, data.getvalue())
