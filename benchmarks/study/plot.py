"""The pictures of the study: AP over sampling steps and over latency, and error by joint and by visibility."""

import io
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.figure import Figure

from benchmarks.study.variants import ARMS, MAIN
from dpose_jax.workdir.files import write_bytes

# By panel: the ways of sampling that it shows, and what lies on its x axis.
STEPS, LATENCY = "sampling steps", "latency, in multiples of the coarse branch's"
PANELS = {
    "direct": (("direct",), STEPS),
    "ddim and fresh restarts": (("ddim", "restarts"), STEPS),
    "direct, also without denoising the mirrored crop": (("direct", "unmirrored"), LATENCY),
}
MARKERS = {"direct": "o-", "unmirrored": "D-.", "ddim": "s:", "restarts": "^-."}
COLOURS = {arm: f"C{number % 10}" for number, arm in enumerate((*MAIN, *(arm for arm in ARMS if arm not in MAIN)))}


def write_plot(path: str, rows: list[dict]) -> None:
    """Draws mean AP, by DARK, with its standard error over K and over the latency.

    A colour is an arm, a marker a way of sampling; an arm without denoiser is a level across. Which arms: `_shown`.

    Args:
      rows: with `arm`, `reading` (`coarse`, `direct_2`, `direct_2 without DARK`), `AP`, `AP se` and `times_plain`.
    """
    rows = [row for row in rows if not row["reading"].endswith("DARK") and row["AP"] is not None]
    figure = Figure(figsize=(18, 6), layout="constrained")
    for axes, (title, (ways, across)) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        for arm in _shown(row["arm"] for row in rows):
            its = [row for row in rows if row["arm"] == arm]
            lines = {way: _points([row for row in its if row["reading"].startswith(f"{way}_")], across) for way in ways}
            for way, points in lines.items():
                if points:
                    style = {"color": COLOURS[arm], "fmt": MARKERS[way], "markersize": 5, "capsize": 3}
                    axes.errorbar(*zip(*points, strict=True), label=f"{arm}, {way}", **style)
            if all(row["reading"].startswith(("coarse", "unflipped_0")) for row in its):
                level = next(row["AP"] for row in its if row["reading"] == "coarse")
                axes.axhline(level, color=COLOURS[arm], linestyle="--", label=f"{arm}, coarse")
        axes.set(xlabel=across, ylabel="AP", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        if across == STEPS:
            axes.set_xscale("log", base=2)
            ticks = sorted({round(x) for line in axes.containers for x in line[0].get_xdata()})
            axes.set_xticks(ticks, [str(steps) for steps in ticks])
    _save(figure, path)


def write_errors(path: str, runs: Mapping[tuple[str, int], dict]) -> None:
    """Draws the share of joints beyond each threshold of PCK: of all, by visibility where both are, and by joint.

    Every arm (which: `_shown`) is read by the first of its readings that is `direct`, or by its coarse branch.

    Args:
      runs: by arm and seed; of each, `readings`: by reading, its metrics and `joints` (see `readings.score`).
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    shown = _shown(arm for arm, _ in runs)
    for arm, readings in ((arm, run["readings"]) for (arm, _), run in runs.items() if arm in shown):
        reading = next((name for name in readings if name.startswith("direct_")), "coarse")
        groups.setdefault((arm, reading), []).append(readings[reading])
    first = next(iter(groups.values()))[0]
    figure = Figure(figsize=(14, 1.5 + 0.35 * len(first["joints"])), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2, sharey=True), ("PCK@0.2", "PCK@0.1"), strict=True):
        seen = all(first[f"{metric} {name}"] is not None for name in ("occluded", "visible"))
        names = ["all", *(("occluded", "visible") if seen else ()), *first["joints"]]
        places = np.arange(len(names))
        for number, ((arm, reading), readings) in enumerate(groups.items()):
            errors = 1 - np.array([[_pck(reading, metric, name) for name in names] for reading in readings])
            bars = errors.std(axis=0, ddof=1) / len(errors) ** 0.5 if len(errors) > 1 else None
            offset = 0.6 * ((number + 0.5) / len(groups) - 0.5)
            style = {"color": COLOURS[arm], "fmt": "o", "markersize": 4, "label": f"{arm}, {reading}"}
            axes.errorbar(errors.mean(axis=0), places + offset, xerr=bars, **style)
        axes.set(xlabel=f"1 - {metric}", yticks=places, yticklabels=names)
        axes.grid(alpha=0.3)
    axes.invert_yaxis()
    axes.legend(fontsize=7)
    _save(figure, path)


def _shown(arms: Iterable[str]) -> list[str]:
    """Those of `arms.MAIN`, the rest being for the table; all if there is none."""
    every = list(dict.fromkeys(arms))
    return [arm for arm in every if arm in MAIN] or every


def _pck(reading: dict, metric: str, name: str) -> float:
    """A reading's PCK of `all`, of a visibility or of a joint; NaN where there is none."""
    if name in reading["joints"]:
        value = reading["joints"][name][metric]
    else:
        value = reading[metric if name == "all" else f"{metric} {name}"]
    return np.nan if value is None else value


def _save(figure: Figure, path: str) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    write_bytes(path, data.getvalue())


def _points(rows: list[dict], across: str) -> list[tuple[float, float, float]]:
    """(x, AP, its standard error or NaN) of each reading whose x is known."""
    at = [int(row["reading"].split("_")[1]) if across == STEPS else row.get("times_plain") for row in rows]
    points = [(x, row["AP"], row["AP se"]) for x, row in zip(at, rows, strict=True) if x is not None]
    return [(x, ap, np.nan if error is None else error) for x, ap, error in points]
