"""Writes the generated tables and the plots of the results pages: `python docs/appendix/tables.py`, from the clone.

A table begins at `<!-- rows STUDIES | ROWS | COLUMNS -->`, `<!-- variants STUDY | NAMES -->`, `<!-- gains STUDIES -->`,
`<!-- curves STUDY | VARIANTS | TIMES -->`, and ends at `<!-- end -->`.
Studies are those of docs/results/study.csv and curves.csv; a row is VARIANT:READING, or VARIANT@SEED:READING for one
seed alone.
"""

import pathlib
import re
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.study.gains import gain_in_points  # noqa: E402
from benchmarks.study.plot import write_curves, write_plot  # noqa: E402
from benchmarks.study.tables import estimate, in_points, read_table, summarise  # noqa: E402
from benchmarks.study.variants import title  # noqa: E402

RESULTS = ROOT / "docs" / "results"
PAGES = (ROOT / "docs" / "results.md", *sorted((ROOT / "docs" / "appendix").glob("*.md")))
CURVES = {"synthetic_converged": "curves_converged.png"}
PLOTS = {"lspet_4000": "study_lspet.png", "synthetic_2400": "study_drawn.png"}  # study: its file in docs/images
# Of variants whose fields commit 1a2b2d5 was the last to have.
REMOVED = {
    "passes": "U-Net refiner, half unrolled",
    "late_same_time": "U-Net, HRNet alone at first, same training time",
    "unet_t_1000_unrolled": "U-Net, t up to 1,000, half unrolled",
    "unet_residual": "U-Net, D predicts the change",
}
SETS = {"synthetic_800_stride_2": "800 steps", "synthetic_2400_stride_2": "2,400 steps"}
SETS |= {f"lspet_{steps}": "Leeds" for steps in (2000, 4000)} | {f"synthetic_{steps}": "drawn" for steps in (800, 2400)}
SETS |= {"lspet_800_light_folds": "Leeds", "synthetic_800_light": "drawn", "synthetic_2400_light": "drawn"}
SHORT = {"gain on HRNet": "on HRNet", "gain on U-Net refiner": "on refiner"}
SHORT |= {"gain in the same time": "on HRNet of the same time", "training": "training step"}
FILES = ("study.csv", "latency.csv", "gains.csv", "curves.csv")
RUNS, TIMES, GAINS, EVALUATIONS = (read_table(str(RESULTS / name)) for name in FILES)


def runs_of(study: str, variant: str = "", seed: str = "") -> list[dict]:
    """Rows of study.csv of a study; of a variant, those of one seed alone if it is given."""
    rows = [row for row in RUNS if row["study"] == study]
    return [row for row in rows if row["variant"] != variant or not seed or row["seed"] == int(seed)]


def cells_of(study: str, row: str) -> dict[str, str]:
    """The cells of `VARIANT@SEED:READING` in a study, `AP without DARK` among them; {} where that was not read."""
    name, reading = row.split(":")
    variant, _, seed = name.partition("@")
    times = [row for row in TIMES if row["study"] == study]
    summaries = [one for one in summarise(runs_of(study, variant, seed), times) if one["variant"] == variant]
    found = {str(one["reading"]): one for one in summaries}
    if reading not in found:
        return {}
    undark = found.get(f"{reading} without DARK")
    return in_points(found[reading]) | {"AP without DARK": in_points(undark)["AP"].split(" ")[0] if undark else ""}


def rows_table(studies: str, rows: str, columns: str) -> list[list[str]]:
    """A line a row, with the columns of each study side by side."""
    names, chosen = [study.strip() for study in studies.split("+")], [column.strip() for column in columns.split(",")]
    prefix = {study: f"{SETS.get(study, study)}: " if len(names) > 1 else "" for study in names}
    lines = [["variant, reading", *(f"{prefix[study]}{SHORT.get(one, one)}" for study in names for one in chosen)]]
    for row in (each.strip() for each in rows.split(",")):
        by_study = [cells_of(study, row) for study in names]
        variant, reading = row.split(":")
        seed = f", seed {variant.partition('@')[2]}" if "@" in variant else ""
        label = f"{named(variant.partition('@')[0])}{seed}, {reading}"
        cells = [found.get(one, "") for found in by_study for one in chosen]
        lines.append([label, *("" if cell in ("+0.0", "+0.0 ± 0.0") else cell for cell in cells)])  # a control's own
    return lines


def variants_table(study: str, variants: str) -> list[list[str]]:
    """A line a variant: AP of seed 0 by number of steps, and its gain on the U-Net, paired over the seeds of both."""
    lines = [["variant", "coarse", "1 step", "2", "1 step, on the U-Net", "2 steps, on the U-Net"]]
    ap = {
        (row["variant"], row["seed"], f"{row['update']}_{row['K']}"): row["AP"]
        for row in runs_of(study)
        if row["refine"] == "dark"
    }
    for variant in (each.strip() for each in variants.split(",")):
        line = [named(variant).removeprefix("U-Net, ")]
        for reading in ("coarse_0", "direct_1", "direct_2"):
            value = ap.get((variant, 0, reading))
            line.append("" if value is None else f"{100 * value:.1f}")
        for reading in ("direct_1", "direct_2") if variant != "unet" else ():
            keys = [key for key in ap if key[0] == variant and key[2] == reading and ("unet", *key[1:]) in ap]
            gain = estimate(ap[key] - ap["unet", key[1], reading] for key in keys)
            line.append(gain.points(sign=True) if gain else "")
        lines.append([*line, *[""] * (len(lines[0]) - len(line))])
    return lines


def gains_table(studies: str) -> list[list[str]]:
    """A line a gain of gains.csv, with the more important columns."""
    hidden = ("PCK@0.1", "times")
    chosen = [row for row in GAINS if row["study"] in [study.strip() for study in studies.split("+")]]
    cells = [{"data": SETS.get(row["study"], row["study"])} | gain_in_points(row) for row in chosen]
    names = [name for name in cells[0] if name not in hidden]
    return [names, *([row[name] for name in names] for row in cells)]


def curves_of(study: str) -> dict[str, list[np.ndarray]]:
    """By variant, for each seed, (N, 2): time in steps of HRNet, and AP of an evaluation during training."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in EVALUATIONS:
        if row["study"] == study:
            found.setdefault((row["variant"], row["seed"]), []).append((row["step"] * row["times"], row["AP"]))
    curves: dict[str, list[np.ndarray]] = {}
    for (variant, _), points in found.items():
        curves.setdefault(variant, []).append(np.array(points))
    return curves


def curves_table(study: str, variants: str, times: str) -> list[list[str]]:
    """A line a variant: AP at each time, between two evaluations in proportion; the mean over seeds."""
    at, curves = np.array([int(time) for time in times.split(",")]), curves_of(study)
    lines = [["time", *(f"{time:,}" for time in at)]]
    for variant in (each.strip() for each in variants.split(",")):
        values = [np.interp(at, *run.T, left=np.nan, right=np.nan) for run in curves[variant]]
        lines.append([named(variant), *("" if np.isnan(ap) else f"{100 * ap:.1f}" for ap in np.mean(values, axis=0))])
    return lines


def named(variant: str) -> str:
    """The title of a variant, removed ones included."""
    return REMOVED.get(variant) or title(variant)


def replace(match: re.Match) -> str:
    """The marked table anew."""
    kind, arguments = match["kind"], [part.strip() for part in match["arguments"].split("|")]
    tables = {"rows": rows_table, "variants": variants_table, "gains": gains_table, "curves": curves_table}
    lines = tables[kind](*arguments)
    text = [f"|{'|'.join(line)}|" for line in lines]
    return "\n".join([match["mark"], "", text[0], "|" + "---|" * len(lines[0]), *text[1:], "", "<!-- end -->"])


def main() -> None:
    """Writes all tables and plots."""
    kinds = r"(?P<mark><!-- (?P<kind>rows|variants|gains|curves) (?P<arguments>.*?) -->)"
    mark = re.compile(kinds + r".*?<!-- end -->", re.DOTALL)
    for page in PAGES:
        page.write_text(mark.sub(replace, page.read_text()))
    for study, file in CURVES.items():
        write_curves(str(ROOT / "docs" / "images" / file), curves_of(study))
    for study, file in PLOTS.items():
        times = [row for row in TIMES if row["study"] == study]
        # Without the same training time: its seeds and devices are not those of the others.
        rows = [row for row in runs_of(study) if row["variant"] != "plain_same_time"]
        write_plot(str(ROOT / "docs" / "images" / file), summarise(rows, times))


if __name__ == "__main__":
    main()
