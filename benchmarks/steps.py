"""Sampling steps: accuracy, latency, throughput and memory of each number of steps and update, all from one run."""

import os

import jax
from absl import flags
from ml_collections import config_flags

from benchmarks import report
from benchmarks.sampling import LATENCY_PERSONS, PARTS, Run, measure_accuracy, measure_costs, plan
from benchmarks.steps_plot import write_plot
from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches
from dpose_jax.diffusion.sampler import UPDATES
from dpose_jax.evaluation.evaluator import protocol_facts, restore
from dpose_jax.models.diffusion_pose import build_model

CONFIG = config_flags.DEFINE_config_file("config", None, "The file of configs/ that was trained.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.", required=True)
STEPS = flags.DEFINE_list("steps", ["0", "1", "2", "4", "8", "16"], "Numbers of steps; 0 is the coarse branch.")
UPDATE = flags.DEFINE_list("update", list(UPDATES), f"Update rules, of {UPDATES}.")
RESTARTS = flags.DEFINE_bool("restarts", True, "A line of K averaged one-step samples from independent noise.")
NOISE_TIME = flags.DEFINE_integer("noise_time", 300, "t_start of those samples, in 1..T.")
EARLY_STOP = flags.DEFINE_float("early_stop", 0.0, "Adds a line with this sampler.early_stop, heatmap px, if not 0.")
BATCH = flags.DEFINE_integer("batch", 32, "Persons in a batch, for accuracy and throughput.")
SECONDS = flags.DEFINE_float("seconds", 3.0, "To spend on timing each program.")
OUT = flags.DEFINE_string("out", None, "The folder for steps.json, steps.md and steps.png.", required=True)

RATES = {"persons_per_s": "ms", "persons_per_s_low": "ms_high", "persons_per_s_high": "ms_low"}


def main() -> None:
    """Measures costs and accuracy in one run, prints the tables, writes the report and the plot."""
    environment, config = report.environment(), CONFIG.value
    runs = plan(
        config,
        [int(text) for text in STEPS.value],
        UPDATE.value,
        NOISE_TIME.value if RESTARTS.value else None,
        EARLY_STOP.value,
    )
    if BATCH.value < 2:
        raise ValueError(f"batch={BATCH.value}: must be at least 2, batch 1 is measured anyway")
    source, model = make_source(config, config.eval.split, training=False), build_model(config)
    restored = restore(config, WORKDIR.value)
    variables = jax.device_put(restored.variables)
    crops = next(iter(eval_batches(config, source, BATCH.value)))["image"]
    singles = crops[:LATENCY_PERSONS, None]
    one, alone, _ = measure_costs(config, model, variables, runs, singles, SECONDS.value)
    many, together, programs = measure_costs(config, model, variables, runs, crops[None], SECONDS.value)
    accuracy = measure_accuracy(config, source, programs, BATCH.value, model.joint_set)
    rows = [_row(run, accuracy[run.name], alone[run], together[run]) for run in runs]
    both = ((1, one), (BATCH.value, many))
    parts = [{"part": name, "batch": size, **costs[name]} for size, costs in both for name in PARTS]
    protocol = protocol_facts(config, model, restored) | {
        "persons": len(source),
        "boxes": config.eval.boxes,
        "batch": BATCH.value,
        "latency_crops": len(singles),
        "noise_time": NOISE_TIME.value,
        "early_stop": EARLY_STOP.value,
    }
    for name in ("update_rule", "start", "t_start"):
        protocol.pop(name, None)  # these differ by row
    facts = {"environment": environment, "protocol": protocol, "parts": parts}
    print(report.table(parts))
    report.write(os.path.join(OUT.value, "steps.json"), rows, **facts)
    write_plot(os.path.join(OUT.value, "steps.png"), rows)


def _row(run: Run, accuracy: dict, alone: dict, together: dict) -> dict:
    rate = {name: round(BATCH.value / together[key] * 1e3, 1) for name, key in RATES.items()}
    start = {"start": run.settings.start, "t_start": run.settings.t_start} if run.settings else {}
    return (
        {"update": run.update, "steps": run.steps, **start}
        | {name: accuracy[name] for name in ("AP", "AP50", "AP75", "PCK@0.2", "PCK@0.1")}
        | {name: alone[name] for name in ("ms", "ms_low", "ms_high", "ratio", "gflops")}
        | rate
        | {"batch_ratio": together["ratio"], "memory_mib": together["memory_mib"]}
        | {"compile_seconds": alone["compile_seconds"] + together["compile_seconds"]}
    )
