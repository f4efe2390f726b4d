"""The tables of a study, a row a reading of a run, and their summary: means over seeds and paired gains."""

import contextlib
import csv
import gzip
import io
import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.study.variants import controls, title
from dpose_jax.workdir.files import write_bytes

RUNS_FILE, JOINTS_FILE, LATENCY_FILE, GAINS_FILE = "study.csv", "joints.csv.gz", "latency.csv", "gains.csv"
KEYS = ("study", "variant", "seed", "update", "K", "refine", "metric")  # of a row of joints.csv.gz; the rest are joints
Row = dict[str, Any]
run_of = operator.itemgetter("variant", "seed")  # the run that a row is of


class Reading(NamedTuple):
    """One way of reading a run."""

    update: str  # `coarse`; `direct`, `ddim`, `restarts`; `unmirrored` or `unflipped`, which are `direct` at less cost
    K: int  # sampling steps, 0 for the coarse branch
    refine: str = "dark"  # of the decoder, or `none`

    def __str__(self) -> str:
        name = "coarse" if self.update == "coarse" else f"{self.update}_{self.K}"
        return name if self.refine == "dark" else f"{name} without DARK"


def reading_of(row: Row) -> Reading:
    """The reading that a row is of."""
    return Reading(row["update"], row["K"], row["refine"])


def read_table(path: str) -> list[Row]:
    """The rows of a CSV file, with .gz a compressed one; [] if there is none. An empty cell is None."""
    if not os.path.exists(path):
        return []
    with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as file:
        return [{name: _value(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def write_table(path: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as CSV, with .gz compressed; floats have six significant digits, a column may lack in some rows."""
    rows = [{name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    write_bytes(path, gzip.compress(content, mtime=0) if path.endswith(".gz") else content)


def _value(cell: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return cell or None


METRICS = ("AP", "AP50", "AP75", "AR", "PCK@0.2", "PCK@0.1", "PCK@0.1 occluded", "PCK@0.1 visible")
# The readings of a variant's `controls`: the backbone alone, equal compute without diffusion, the backbone once more.
CONTROLS = {"gain on HRNet": Reading("coarse", 0), "gain on U-Net refiner": Reading("direct", 1)}
CONTROLS["gain in the same time"] = Reading("coarse", 0)


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    error: float | None  # the standard error; None of one seed
    mixed: bool = False  # compares runs of different devices

    def points(self, *, sign: bool = False) -> str:
        """In points, as `+4.6 ± 0.4`; a dagger marks a mixed one."""
        text = f"{100 * self.mean:{'+' if sign else ''}.1f}"
        error = "" if self.error is None else f" ± {100 * self.error:.1f}"
        return f"{text}{error}{'†' if self.mixed else ''}".replace("-", "−")


def summarise(rows: Iterable[Row], latencies: Iterable[Row] = ()) -> list[Row]:
    """A row a reading of a variant: `variant`, `reading`, `seeds`, Estimates of METRICS and gains, and its cost.

    That is `ms` for one person; `times`, over `ms` of its coarse branch, which is the plain HRNet of the same head; and
    `training`, the time of a training step over that of the plain HRNet that it is compared with.
    """
    groups: dict[tuple[str, Reading], dict[int, Row]] = {}
    for row in rows:
        groups.setdefault((row["variant"], reading_of(row)), {})[row["seed"]] = row
    timed = {(row["variant"], row["timed"], row["K"]): row for row in latencies}
    found = []
    for (variant, reading), its in groups.items():
        summary: Row = {"variant": variant, "reading": reading, "seeds": len(its)}
        summary |= {metric: estimate(row.get(metric) for row in its.values()) for metric in METRICS}
        plain, *_ = names = controls(variant)
        for (gain, best), control in zip(CONTROLS.items(), names, strict=True):  # in AP, seed by seed
            theirs = groups.get((control or "", best._replace(refine=reading.refine)), {})
            pairs = [(row, theirs[seed]) for seed, row in its.items() if seed in theirs]
            mixed = any(one["training_device"] != other["training_device"] for one, other in pairs)
            summary[gain] = estimate((one["AP"] - other["AP"] for one, other in pairs), mixed=mixed)
        cost = timed.get((variant, reading.update, reading.K), {})
        summary |= {name: cost.get(name) for name in ("ms", "times")}
        pace = timed.get((variant, f"train_step of {plain}", None), {}).get("times")
        found.append(summary | {"training": pace and 1 / pace})
    return found


def estimate(values: Iterable[float | None], *, mixed: bool = False) -> Estimate | None:
    """The mean of the values that are not None, and its standard error; None where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    error = float(np.std(known, ddof=1) / len(known) ** 0.5) if len(known) > 1 else None
    return Estimate(float(np.mean(known)), error, mixed)


def in_points(summary: Mapping) -> dict[str, str]:
    """A row of `summarise` as text."""
    cells = {"variant": title(summary["variant"]), "reading": str(summary["reading"]), "seeds": str(summary["seeds"])}
    for name in ("AP", *CONTROLS, *METRICS[1:]):
        value = summary[name] if name in ("AP", *CONTROLS) else summary[name] and summary[name]._replace(error=None)
        cells[name] = value.points(sign=name in CONTROLS) if value else ""
    costs = "ms", "times", "training"
    return cells | {name: f"{summary[name]:.3g}" if summary[name] else "" for name in costs}
