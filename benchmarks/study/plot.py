"""The pictures of the study: AP over sampling steps and over latency, and error by joint and by visibility."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.report import write_figure
from benchmarks.study.tables import KEYS, Reading, Row, reading_of, run_of
from benchmarks.study.variants import DRAWN, VARIANTS, title

# By panel: the updates that it shows, and what lies on its x axis.
STEPS, LATENCY = "sampling steps", "latency / latency of the coarse branch"
PANELS = {
    "direct": (("direct",), STEPS),
    "DDIM on coordinates, and restarts": (("ddim", "restarts"), STEPS),
    "direct, also without denoising the mirrored crop": (("direct", "unmirrored"), LATENCY),
}
MARKERS = {"direct": "o-", "unmirrored": "D-.", "ddim": "s:", "restarts": "^-."}
COLOURS = {name: f"C{number % 10}" for number, name in enumerate(dict.fromkeys((*DRAWN, *VARIANTS)))}


def write_plot(path: str, rows: Sequence[Row]) -> None:
    """Draws mean AP, by DARK, with its standard error over K and over the latency; rows are of `summarise`."""
    rows = [row for row in rows if row["reading"].refine == "dark" and row["AP"]]
    names, read = _shown(row["variant"] for row in rows), {row["reading"].update for row in rows}
    panels = {heading: panel for heading, panel in PANELS.items() if read & set(panel[0])} or PANELS
    figure = Figure(figsize=(5 * len(panels), 4.5), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (heading, (updates, across)) in zip(every, panels.items(), strict=True):
        for name in names:
            its = {row["reading"]: row for row in rows if row["variant"] == name}
            for update in updates:
                line = [row for reading, row in its.items() if reading.update == update]
                points = [(row["reading"].K if across == STEPS else row["times"], *row["AP"][:2]) for row in line]
                if points := [point for point in points if point[0] is not None]:
                    x, mean, error = np.array(points, float).T  # an error None becomes NaN
                    style = {"color": COLOURS.get(name), "fmt": MARKERS[update], "markersize": 5, "capsize": 3}
                    axes.errorbar(x, 100 * mean, 100 * error, label=f"{title(name)}, {update}", **style)
            if {reading.update for reading in its} <= {"coarse", "unflipped"}:  # no denoiser
                level = 100 * its[Reading("coarse", 0)]["AP"].mean
                axes.axhline(level, color=COLOURS.get(name), linestyle="--", label=title(name))
        axes.set(xlabel=across, ylabel="AP", title=heading)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        if across == STEPS:
            axes.set_xscale("log", base=2)
            ticks = sorted({round(x) for line in axes.containers for x in line[0].get_xdata()})
            axes.set_xticks(ticks, [str(steps) for steps in ticks])
    write_figure(path, figure)


def write_errors(path: str, rows: Iterable[Row], joints: Iterable[Row]) -> None:
    """Draws 100 - PCK of all joints, by visibility where both are, and by joint; of study.csv and joints.csv.gz."""
    by_joint = {(run_of(row), reading_of(row), row["metric"]): row for row in joints}
    every = [row for row in rows if row["refine"] == "dark" and row["update"] in ("direct", "coarse")]
    groups: dict[str, list[Row]] = {}
    for name in _shown(row["variant"] for row in every):
        its = [row for row in every if row["variant"] == name]
        # The fewest steps of `direct`, or the coarse branch.
        best = min((reading_of(row) for row in its), key=lambda reading: (reading.update == "coarse", reading.K))
        groups[name] = [row for row in its if reading_of(row) == best]
    first = next(iter(groups.values()))[0]
    values = by_joint[run_of(first), reading_of(first), "PCK@0.1"]
    names = [name for name, value in values.items() if name not in KEYS and value is not None]
    figure = Figure(figsize=(14, 1.5 + 0.35 * len(names)), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2, sharey=True), ("PCK@0.2", "PCK@0.1"), strict=True):
        kinds = [kind for kind in (f"{metric} occluded", f"{metric} visible") if first.get(kind) is not None]
        columns = [metric, *(kinds if len(kinds) == 2 else ()), *names]
        for number, (name, its) in enumerate(groups.items()):
            both = [row | by_joint[run_of(row), reading_of(row), metric] for row in its]
            shares = np.array([[row[column] for column in columns] for row in both], float)
            bars = 100 * shares.std(axis=0, ddof=1) / len(shares) ** 0.5 if len(shares) > 1 else None
            y = np.arange(len(columns)) + 0.6 * ((number + 0.5) / len(groups) - 0.5)
            style = {"color": COLOURS.get(name), "fmt": "o", "markersize": 4}
            label = f"{title(name)}, {reading_of(its[0])}"
            axes.errorbar(100 - 100 * shares.mean(axis=0), y, xerr=bars, label=label, **style)
        labels = ["all", *(column.removeprefix(f"{metric} ") for column in columns[1:])]
        axes.set(xlabel=f"100 - {metric}", yticks=range(len(columns)), yticklabels=labels)
        axes.grid(alpha=0.3)
    axes.invert_yaxis()
    axes.legend(fontsize=7)
    write_figure(path, figure)


def write_curves(path: str, curves: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Draws AP over training time: by variant the mean of its runs, and each of them thin; see `Study.curves`."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, runs in curves.items():
        for run in runs if len(runs) > 1 else ():
            axes.plot(run[:, 0], 100 * run[:, 1], color=COLOURS.get(name), linewidth=0.5)
        mean = np.mean(runs, axis=0)  # all evaluate after the same steps
        axes.plot(mean[:, 0], 100 * mean[:, 1], "o-", color=COLOURS.get(name), markersize=3, label=title(name))
    axes.set(xlabel="training time / time of a step of HRNet", ylabel="AP during training")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    write_figure(path, figure)


def _shown(names: Iterable[str]) -> list[str]:
    """DRAWN's of the names, or all where none of them is there."""
    every = list(dict.fromkeys(names))
    return [name for name in every if name in DRAWN] or every
