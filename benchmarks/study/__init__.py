"""Study: variants of the method trained alike from several seeds and read in every way; resumable."""

import os

from absl import flags

from benchmarks import report
from benchmarks.study.gains import gain_in_points, gains_table
from benchmarks.study.plot import write_curves, write_errors, write_plot
from benchmarks.study.runs import Study
from benchmarks.study.tables import (
    GAINS_FILE,
    JOINTS_FILE,
    LATENCY_FILE,
    RUNS_FILE,
    in_points,
    run_of,
    summarise,
    write_table,
)
from benchmarks.study.variants import MAIN, VARIANTS
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import cpu
from dpose_jax.workdir import recipe_flags
from dpose_jax.workdir.files import write_bytes

CONFIG = recipe_flags.define("The recipe: what all variants share.")
NAMES = flags.DEFINE_list("arms", list(MAIN), f"Variants, in this order, of {', '.join(VARIANTS)}.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of weights, order and noise; the variants share them.")
STEPS = flags.DEFINE_list("steps", ["1", "2", "4", "8"], "Sampling steps K.")
NOISE_TIME = flags.DEFINE_integer("noise_time", 300, "t_start of the restarts, in 1..T.")
SECONDS = flags.DEFINE_float("seconds", 1.0, "To spend on timing each way of sampling, one person at a time.")
MOST_TIMES = flags.DEFINE_float("most_times", 1.5, "Of the coarse branch's latency: for the readings of gains.csv.")
OUT = flags.DEFINE_string("out", None, "The folder for the runs, the tables, study.md and the plots.", required=True)
REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Train and time nothing: report the runs that are finished.")
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains and reads what is missing, and writes the report anew after every run."""
    cpu.keep_compiled_programs()  # the seeds of a variant share theirs, and no compilation is timed here
    steps = tuple(sorted(int(text) for text in STEPS.value))
    study = Study(OUT.value, Recipe.from_config(CONFIG.value), steps, NOISE_TIME.value, SECONDS.value)
    study.check(NAMES.value)
    every = [(name, int(seed)) for seed in SEEDS.value for name in NAMES.value]
    finished = {run_of(row) for row in study.table(RUNS_FILE)}.intersection(every)
    if REPORT_ONLY.value and not finished:
        raise ValueError(f"{OUT.value}: no run of --arms={','.join(NAMES.value)} is finished there")
    if not REPORT_ONLY.value:
        study.begin(NAMES.value, [int(seed) for seed in SEEDS.value])
        for name in dict.fromkeys(name for name, seed in every if (name, seed) in finished):
            study.time(name)
    if finished:
        write_report(study, every)
    for name, seed in every if not REPORT_ONLY.value else ():
        if (name, seed) not in finished:
            study.finish(name, seed)
            study.time(name)
            print(f"\n{name}, seed {seed}:")
            write_report(study, every)


def write_report(study: Study, runs: list[tuple[str, int]]) -> None:
    """Prints and writes a row a reading of the finished ones among `runs`, and one a gain; draws the plots."""
    rows, joints = ([row for row in study.table(name) if run_of(row) in runs] for name in (RUNS_FILE, JOINTS_FILE))
    rows.sort(key=lambda row: runs.index(run_of(row)))
    done = {run_of(row): row["training_device"] for row in rows}
    summaries = summarise(rows, study.table(LATENCY_FILE))
    text = report.table([in_points(summary) for summary in summaries])
    gains = gains_table(study.matches(done), done, study.table(LATENCY_FILE), MOST_TIMES.value)
    if gains:
        identity = {"study": os.path.basename(os.path.abspath(study.folder))}
        write_table(os.path.join(study.folder, GAINS_FILE), [identity | gain for gain in gains])
        text += f"\n\n{report.table([gain_in_points(gain) for gain in gains])}"
    print(text)
    write_bytes(os.path.join(study.folder, "study.md"), f"{text}\n".encode())
    write_plot(os.path.join(study.folder, "study.png"), summaries)
    if curves := study.curves(done):
        write_curves(os.path.join(study.folder, "curves.png"), curves)
    write_errors(os.path.join(study.folder, "errors.png"), rows, joints)
