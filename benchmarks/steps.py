"""Sampling steps: accuracy, latency, throughput and memory of each number of steps and update, all from one run."""

import os

import jax
from absl import flags
from matplotlib.figure import Figure

from benchmarks import report
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
OUT = flags.DEFINE_string("out", None, "The folder for steps.json, steps.md and steps.png.", required=True)


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
    alone, _ = measure_costs(recipe, variables, samplings, singles, SECONDS.value)
    together, programs = measure_costs(recipe, variables, samplings, crops[None], SECONDS.value)
    accuracy = measure_accuracy(recipe, source, programs, BATCH.value)
    rows = [_row(one, accuracy[one] | alone[one], together[one]) for one in samplings]
    facts = protocol_facts(recipe, build_model(recipe), restored) | {"persons": len(source), "boxes": recipe.eval.boxes}
    facts |= {"batch": BATCH.value, "latency_crops": len(singles), "noise_time": NOISE_TIME.value}
    # The others differ by row.
    protocol = {name: fact for name, fact in facts.items() if name not in ("update_rule", "start", "t_start")}
    report.write(os.path.join(OUT.value, "steps.json"), rows, environment=environment, protocol=protocol)
    write_plot(os.path.join(OUT.value, "steps.png"), rows)


def _row(one: Sampling, alone: dict, together: dict) -> dict:
    row = {"update": one.update, "steps": one.steps}
    row |= {"start": one.settings.start, "t_start": one.settings.t_start} if one.settings else {}
    row |= {name: alone[name] for name in ("AP", "AP50", "AP75", "PCK@0.2", "PCK@0.1", "ms", "ms_low", "ms_high")}
    row |= {"persons_per_s": round(BATCH.value / together["ms"] * 1e3, 1), "memory_mib": together["memory_mib"]}
    return row | {"compile_seconds": alone["compile_seconds"] + together["compile_seconds"]}


def write_plot(path: str, rows: list[dict]) -> None:
    """Draws AP and PCK@0.2 over `ms`, a line an update of the rows, each from the coarse branch where there is one."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("AP", "PCK@0.2"), strict=True):
        for update in dict.fromkeys(row["update"] for row in rows if row["update"] != "coarse"):
            line = [row for row in rows if row["update"] in ("coarse", update) and row[metric] is not None]
            points = [(row["ms"], 100 * row[metric]) for row in line]
            axes.plot(*zip(*points, strict=True), "o-", label=update, markersize=4)
            for row, point in zip(line, points, strict=True):
                axes.annotate(f" {row['steps']}", point, fontsize=8)
        axes.set(xlabel="milliseconds a person, batch 1", ylabel=metric, xscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    report.write_figure(path, figure)
