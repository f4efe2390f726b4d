"""Sampling steps: accuracy, latency, throughput and memory of each number of steps and update, all from one run."""

import os

import jax
from absl import flags

from benchmarks import report
from benchmarks.sampling import LATENCY_PERSONS, PARTS, Sampling, measure_costs, plan, predict
from benchmarks.steps_plot import write_plot
from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches
from dpose_jax.diffusion.sampler import UPDATE_RULES
from dpose_jax.evaluation.evaluator import protocol_facts, restore
from dpose_jax.evaluation.report import summarise
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.workdir import recipe_flags

recipe_flags.define_beside_workdir()
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.", required=True)
STEPS = flags.DEFINE_list("steps", ["0", "1", "2", "4", "8", "16"], "Numbers of steps; 0 is the coarse branch.")
UPDATE = flags.DEFINE_list("update", list(UPDATE_RULES), f"Update rules, of {UPDATE_RULES}.")
RESTARTS = flags.DEFINE_bool("restarts", True, "A line of K averaged one-step samples from independent noise.")
NOISE_TIME = flags.DEFINE_integer("noise_time", 300, "t_start of those samples, in 1..T.")
BATCH = flags.DEFINE_integer("batch", 32, "Persons in a batch, for accuracy and throughput.")
SECONDS = flags.DEFINE_float("seconds", 3.0, "To spend on timing each program.")
OUT = flags.DEFINE_string("out", None, "The folder for steps.json, steps.md and steps.png.", required=True)

RATES = {"persons_per_s": "ms", "persons_per_s_low": "ms_high", "persons_per_s_high": "ms_low"}


def main() -> None:
    """Measures costs and accuracy in one run, prints the tables, writes the report and the plot."""
    environment, recipe = report.environment(), recipe_flags.of_workdir(WORKDIR.value)
    noise_time = NOISE_TIME.value if RESTARTS.value else None
    samplings = plan(recipe, [int(text) for text in STEPS.value], UPDATE.value, noise_time)
    if BATCH.value < 2:
        raise ValueError(f"batch={BATCH.value}: must be at least 2, batch 1 is measured anyway")
    source, model = make_source(recipe, recipe.eval.split, training=False), build_model(recipe)
    restored = restore(recipe, WORKDIR.value)
    variables = jax.device_put(restored.variables)
    crops = next(iter(eval_batches(recipe, source, BATCH.value)))["image"]
    singles = crops[:LATENCY_PERSONS, None]
    one, alone, _ = measure_costs(recipe, model, variables, samplings, singles, SECONDS.value)
    many, together, programs = measure_costs(recipe, model, variables, samplings, crops[None], SECONDS.value)
    predictions = predict(recipe, source, [_named(*item) for item in programs.items()], BATCH.value)
    accuracy = summarise(source, predictions, model.joint_set, recipe)[0]["results"]
    rows = [_row(each, accuracy[each], alone[each], together[each]) for each in samplings]
    both = ((1, one), (BATCH.value, many))
    parts = [{"part": name, "batch": size, **costs[name]} for size, costs in both for name in PARTS]
    protocol = protocol_facts(recipe, model, restored) | {
        "persons": len(source),
        "boxes": recipe.eval.boxes,
        "batch": BATCH.value,
        "latency_crops": len(singles),
        "noise_time": noise_time,
    }
    for name in ("update_rule", "start", "t_start"):
        protocol.pop(name, None)  # these differ by row
    print(report.table(parts))
    facts = {"environment": environment, "protocol": protocol, "parts": parts}
    report.write(os.path.join(OUT.value, "steps.json"), rows, **facts)
    write_plot(os.path.join(OUT.value, "steps.png"), rows)


def _named(sampling: Sampling, program):
    """The program as `predict` takes it, its result named by the sampling."""

    def run(crops, ids):
        found = program(crops, ids)
        return {sampling: (found["keypoints"], found["scores"])}

    return run


def _row(one: Sampling, accuracy: dict, alone: dict, together: dict) -> dict:
    rate = {name: round(BATCH.value / together[key] * 1e3, 1) for name, key in RATES.items()}
    start = {"start": one.settings.start, "t_start": one.settings.t_start} if one.settings else {}
    return (
        {"update": one.update, "steps": one.steps, **start}
        | {name: accuracy[name] for name in ("AP", "AP50", "AP75", "PCK@0.2", "PCK@0.1")}
        | {name: alone[name] for name in ("ms", "ms_low", "ms_high", "ratio", "gflops")}
        | rate
        | {"batch_ratio": together["ratio"], "memory_mib": together["memory_mib"]}
        | {"compile_seconds": alone["compile_seconds"] + together["compile_seconds"]}
    )
