"""What the runs of a study say together: means over seeds, and gains paired seed by seed."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.study.tables import Reading, Row, reading_of
from benchmarks.study.variants import title

METRICS = ("AP", "AP50", "AP75", "AR", "PCK@0.2", "PCK@0.1", "PCK@0.1 occluded", "PCK@0.1 visible")
# The readings that every other is compared with: the backbone alone, and equal compute without diffusion.
CONTROLS = {"gain on HRNet": ("plain", Reading("coarse", 0))}
CONTROLS["gain on U-Net refiner"] = "one_pass", Reading("direct", 1)


class Estimate(NamedTuple):
    """A mean over seeds, its standard error (None of one seed), and whether it compares runs of different devices."""

    mean: float
    error: float | None
    mixed: bool = False

    def points(self, *, sign: bool = False) -> str:
        """In points, as `+4.6 ± 0.4`; a dagger marks a mixed one."""
        text = f"{100 * self.mean:{'+' if sign else ''}.1f}"
        error = "" if self.error is None else f" ± {100 * self.error:.1f}"
        return f"{text}{error}{'†' if self.mixed else ''}".replace("-", "−")


def summarise(rows: Iterable[Row], latencies: Iterable[Row] = ()) -> list[Row]:
    """A row a reading of a variant: `variant`, `reading`, `seeds`, Estimates of METRICS and gains, `ms`, `times`.

    Takes rows of study.csv and of latency.csv. A gain in AP is paired, seed by seed, with the control's of the same
    decoding; None without a common seed.
    """
    groups: dict[tuple[str, Reading], dict[int, Row]] = {}
    for row in rows:
        groups.setdefault((row["variant"], reading_of(row)), {})[row["seed"]] = row
    timed = {(row["variant"], row["timed"], row["K"]): row for row in latencies}
    found = []
    for (variant, reading), its in groups.items():
        summary: Row = {"variant": variant, "reading": reading, "seeds": len(its)}
        summary |= {metric: estimate(row.get(metric) for row in its.values()) for metric in METRICS}
        for gain, (control, best) in CONTROLS.items():
            theirs = groups.get((control, best._replace(refine=reading.refine)), {})
            pairs = [(row, theirs[seed]) for seed, row in its.items() if seed in theirs]
            mixed = any(one["training_device"] != other["training_device"] for one, other in pairs)
            summary[gain] = estimate((one["AP"] - other["AP"] for one, other in pairs), mixed=mixed)
        cost = timed.get((variant, reading.update, reading.K), {})
        found.append(summary | {name: cost.get(name) for name in ("ms", "times")})
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
    return cells | {name: f"{summary[name]:.3g}" if summary[name] else "" for name in ("ms", "times")}
