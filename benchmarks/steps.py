"""Sampling steps: accuracy, latency, throughput and memory of each number of steps and update, all from one run."""

import os

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks import report
from benchmarks.labels import place_labels
from benchmarks.sampling import LATENCY_PERSONS, UPDATES, Sampling, measure_accuracy, measure_costs, plan
from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches
from dpose_jax.evaluation.evaluator import protocol_facts
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.workdir import recipe_flags

recipe_flags.define_beside_workdir()
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.")
MODEL = flags.DEFINE_string("model", None, "Instead, a model folder, or hf:OWNER/REPO.")
STEPS = flags.DEFINE_list("steps", ["0", "1", "2", "4", "8", "16"], "Numbers of steps; 0 is the coarse branch.")
UPDATE = flags.DEFINE_list("update", ["direct", "ddim"], f"Ways of sampling, of {', '.join(UPDATES)}.")
RESTARTS = flags.DEFINE_bool("restarts", True, "A line of K averaged one-step samples from independent noise.")
NOISE_TIME = flags.DEFINE_integer("noise_time", 300, "t_start of those samples, in 1..T.")
BATCH = flags.DEFINE_integer("batch", 32, "Persons in a batch, for accuracy and throughput.")
SECONDS = flags.DEFINE_float("seconds", 3.0, "To spend on timing each program.")
DTYPE = flags.DEFINE_list("dtype", None, "float32, bfloat16 or both, side by side; by default the recipe's.")
OUT = flags.DEFINE_string("out", None, "The folder for steps.json, steps.md and steps.png.", required=True)

# What a call that is timed holds: its crops lie on the host before, its joints on the device after it.
COPIES = "crops to the device count, joints to the host do not"


def main() -> None:
    """Measures costs and accuracy in one run, prints the table, writes the report and the plot."""
    environment = report.environment()
    recipe, restored = recipe_flags.of_workdir_or_model(WORKDIR.value, MODEL.value)
    updates = dict.fromkeys([*UPDATE.value, "restarts"] if RESTARTS.value else UPDATE.value)
    samplings = plan(recipe, [int(text) for text in STEPS.value], updates, NOISE_TIME.value)
    if BATCH.value < 2:
        raise ValueError(f"batch={BATCH.value}: must be at least 2, batch 1 is measured anyway")
    source = make_source(recipe, recipe.eval.split, training=False)
    variables = jax.device_put(restored.variables)
    crops = next(iter(eval_batches(recipe, source, BATCH.value)))["image"]
    singles = crops[:LATENCY_PERSONS, None]

    def measured(dtype: str) -> list[dict]:
        one_type = recipe.override({"model.dtype": dtype})
        alone, _ = measure_costs(one_type, variables, samplings, singles, SECONDS.value)
        together, programs = measure_costs(one_type, variables, samplings, crops[None], SECONDS.value)
        accuracy = measure_accuracy(one_type, source, programs, BATCH.value)
        return [{"dtype": dtype} | _row(one, accuracy[one] | alone[one], together[one]) for one in samplings]

    facts = protocol_facts(recipe, build_model(recipe), restored) | {"persons": len(source), "boxes": recipe.eval.boxes}
    facts |= {"batch": BATCH.value, "latency_crops": len(singles), "noise_time": NOISE_TIME.value, "copies": COPIES}
    # The others differ by row.
    differ = ("update_rule", "start", "t_start", "dtype")
    stored = {"protocol": {name: fact for name, fact in facts.items() if name not in differ}}
    stored, out = {"environment": environment} | stored, os.path.join(OUT.value, "steps.json")
    rows = report.kept(out, map(measured, DTYPE.value or [recipe.model.dtype]), **stored)
    report.write(out, rows, **stored)
    write_plot(os.path.join(OUT.value, "steps.png"), rows)


def _row(one: Sampling, alone: dict, together: dict) -> dict:
    row = {"update": one.update, "steps": one.steps}
    row |= {"start": one.settings.start, "t_start": one.settings.t_start} if one.settings else {}
    row |= {name: alone[name] for name in ("AP", "AP50", "AP75", "PCK@0.2", "PCK@0.1")}
    row |= {name: alone[name] for name in ("ms", "ms_low", "ms_high", "ms_p95", "calls")}
    rates = {"persons_per_s": "ms", "persons_per_s_low": "ms_high", "persons_per_s_high": "ms_low"}
    row |= {name: round(BATCH.value / together[time] * 1e3, 1) for name, time in rates.items()}
    row |= {"batch_calls": together["calls"], "memory_mib": together["memory_mib"]}
    return row | {"compile_seconds": alone["compile_seconds"] + together["compile_seconds"]}


def write_plot(path: str, rows: list[dict]) -> None:
    """Draws AP and PCK@0.2 over `ms`, a line an update and dtype, each from the coarse branch where there is one.

    Bars are the quartiles of `ms`, numbers the steps.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    panels = figure.subplots(1, 2)
    labels: list[dict] = [{}, {}]
    for axes, its, metric in zip(panels, labels, ("AP", "PCK@0.2"), strict=True):
        for dtype, update in dict.fromkeys((row["dtype"], row["update"]) for row in rows if row["update"] != "coarse"):
            own = [row for row in rows if row["dtype"] == dtype and row["update"] in ("coarse", update)]
            line = [row for row in own if row[metric] is not None]
            ms, low, high = (np.array([row[name] for row in line]) for name in ("ms", "ms_low", "ms_high"))
            points = [(row["ms"], 100 * row[metric]) for row in line]
            name = update if len(dtypes) == 1 else f"{update}, {dtype}"
            style = {"fmt": "o-", "markersize": 4, "elinewidth": 1, "capsize": 2}
            bars = axes.errorbar(ms, [y for _, y in points], xerr=(ms - low, high - ms), label=name, **style)
            its |= {point: (str(row["steps"]), bars[0].get_color()) for point, row in zip(points, line, strict=True)}
        axes.set(xlabel="milliseconds a person, batch 1", ylabel=metric, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.draw_without_rendering()  # lays the panels out, so that labels know where they are
    for axes, its in zip(panels, labels, strict=True):
        place_labels(axes, its)
    report.write_figure(path, figure)
