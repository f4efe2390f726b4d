"""The pictures of the study: AP over sampling steps and over latency, and error by joint and by visibility."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from dpose_jax.benchmarks.arms import ARMS
from dpose_jax.files import write_bytes

DARK, PLAIN = "with DARK", "without DARK"
LINES = {"coarse": "*", "direct": "o-", "unmirrored": "D-.", "unflipped": "v--", "ddim": "s:", "restarts": "^:"}
COLOURS = {arm: f"C{number}" for number, arm in enumerate(ARMS)}  # the same in every plot; ten, then again
STEPS, LATENCY = "sampling steps; 0: coarse branch", "latency, in multiples of the coarse branch's"


def write_plot(path: str, rows: list[dict]) -> None:
    """Draws mean AP with its standard error: over K with DARK and without, and with it over the latency.

    A colour is an arm, a marker a way of sampling.

    Args:
      rows: with `arm`, `reading` (`coarse`, `direct_2`, `direct_2 without DARK`), `AP`, `AP se` and `times_plain`.
    """
    figure = Figure(figsize=(18, 6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, refine, across in zip(panels, (DARK, PLAIN, DARK), (STEPS, STEPS, LATENCY), strict=True):
        lines = _lines(rows, refine, across)
        for (arm, line), points in lines.items():
            at, mean, error = zip(*points, strict=True)
            style = {"color": COLOURS[arm], "fmt": LINES[line], "markersize": 5, "capsize": 3}
            axes.errorbar(at, mean, error, label=f"{arm}, {line}", **style)
        axes.set(xlabel=across, ylabel="AP", title=refine)
        axes.grid(alpha=0.3)
        if across == STEPS:
            axes.set_xscale("symlog", base=2, linthresh=1)
            ticks = sorted({steps for points in lines.values() for steps, _, _ in points})
            axes.set_xticks(ticks, [str(steps) for steps in ticks])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    _save(figure, path)


def write_errors(path: str, runs: Mapping[tuple[str, int], dict]) -> None:
    """Draws the share of joints beyond each threshold of PCK: of all, by visibility where both are, and by joint.

    Every arm is shown by the first of its readings that is `direct`, or by its coarse branch if none is.

    Args:
      runs: by arm and seed; of each, `readings`: by reading, its metrics and `joints` (see `readings.score`).
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for (arm, _), run in runs.items():
        reading = next((name for name in run["readings"] if name.startswith("direct_")), "coarse")
        groups.setdefault((arm, reading), []).append(run["readings"][reading])
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


def _lines(rows: list[dict], refine: str, across: str) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """By arm and line: (x, AP, standard error) of each of its readings."""
    lines: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for row in rows:
        reading, _, rest = row["reading"].partition(" ")
        if bool(rest) == (refine == PLAIN) and row["AP"] is not None:
            line, _, steps = reading.partition("_")
            at = int(steps or 0) if across == STEPS else row["times_plain"]
            lines.setdefault((row["arm"], line), []).append((at, row["AP"], row["AP se"] or 0))
    return lines
