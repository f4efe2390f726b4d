"""How fast each part is, beside its peers: one table of medians."""

from absl import flags

from dpose_jax.benchmarks import report
from dpose_jax.benchmarks.rows import ROWS

NAMES = flags.DEFINE_list("rows", sorted(ROWS), "Which rows to measure.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", required=True)


def main() -> None:
    unknown = sorted(set(NAMES.value) - set(ROWS))
    if unknown:
        raise ValueError(f"--rows={','.join(unknown)}: must be among {', '.join(sorted(ROWS))}")
    environment = report.environment()
    rows = [row for name in NAMES.value for row in ROWS[name]()]
    report.write(OUT.value, rows, environment=environment)
