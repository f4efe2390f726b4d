"""The tables of a study: study.csv, a row a reading of a run; joints.csv.gz, a row a metric of it; latency.csv."""

import contextlib
import csv
import gzip
import io
import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dpose_jax.workdir.files import write_bytes

RUNS_FILE, JOINTS_FILE, LATENCY_FILE = "study.csv", "joints.csv.gz", "latency.csv"
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
