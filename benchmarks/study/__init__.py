"""Does the diffusion earn its place? Arms trained alike, from several seeds, and read in every way; resumable.

python benchmark.py study --config=configs/lspet_tiny.py --out=OUT [--arms=plain,recipe] [--seeds=0,1,2] [--report_only]

Each run lies in OUT/ARM/seed_S. The same command goes on where it was stopped; finished runs are kept.
"""

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import flags
from dpose_jax.training.fields import check_fields
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import config_flags

from benchmarks import report
from benchmarks.study.pictures import write_changes
from benchmarks.study.plot import write_errors, write_plot
from benchmarks.study.readings import latency, make_readings, predict, score
from benchmarks.study.variants import ARMS, MAIN, arm_config
from dpose_jax.data.datasets import make_source
from dpose_jax.evaluation.evaluator import protocol_facts, restore
from dpose_jax.evaluation.report import needs_annotated_boxes
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.runtime import app, sharding
from dpose_jax.training.loop import prepare, train
from dpose_jax.workdir.checkpoints import holds_checkpoint, stored_config
from dpose_jax.workdir.files import read_json, write_json

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe: what all arms share.", lock_config=True)
ARM_NAMES = flags.DEFINE_list("arms", list(MAIN), f"In this order, of {', '.join(ARMS)}.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of weights, order and noise; the arms share them.")
STEPS = flags.DEFINE_list("steps", ["1", "2", "4", "8"], "Sampling steps K.")
NOISE_TIME = flags.DEFINE_integer("noise_time", 300, "t_start of the fresh restarts, in 1..T.")
SECONDS = flags.DEFINE_float("seconds", 1.0, "To spend on timing each way of sampling, one person at a time.")
OUT = flags.DEFINE_string("out", None, "The folder for the runs, study.json, study.md and the plots.", required=True)
REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Train and time nothing: report the runs that are finished.")
flags.mark_flag_as_required("config")

READ_FILE, PACE_FILE, LATENCY_FILE = "readings.json", "pace.json", "latency.json"
METRICS = ("AP", "AP50", "AP75", "PCK@0.2", "PCK@0.1", "PCK@0.1 occluded", "PCK@0.1 visible")
# Of the protocol: differ by run or by reading.
VARIES = ("seed", "step", "steps", "update_rule", "start", "t_start", "flip", "flip_shift", "mirrored")
# The readings that every other is held against, seed by seed: the backbone alone, and equal compute without diffusion.
CONTROLS = {"gain": ("plain", "coarse"), "gain on one_pass": ("one_pass", "direct_1")}

Runs = dict[tuple[str, int], dict]  # by arm and seed
Latencies = dict[str, dict[str, dict]]  # by arm and reading


def main() -> None:
    """Trains and reads what is missing, and writes the report anew after every run."""
    app.keep_compiled_programs()  # the seeds of an arm share theirs, and no compilation is timed here
    recipe, seeds = CONFIG.value, [int(text) for text in SEEDS.value]
    steps = sorted(int(text) for text in STEPS.value)
    check(recipe, ARM_NAMES.value, seeds, steps)
    every = [(name, seed) for seed in seeds for name in ARM_NAMES.value]
    finished = [run for run in every if os.path.exists(_readings_path(*run))]
    missing = [] if REPORT_ONLY.value else [run for run in every if run not in finished]
    if not finished and not missing:
        raise ValueError(f"{OUT.value}: no run of --arms={','.join(ARM_NAMES.value)} is finished there")
    runs = {run: run_once(recipe, *run, steps) for run in finished}
    latencies = {name: latency_once(recipe, name, steps) for name in dict.fromkeys(name for name, _ in finished)}
    if finished:
        write_report(runs, latencies)
    for name, seed in missing:
        runs[name, seed] = run_once(recipe, name, seed, steps)
        latencies[name] = latency_once(recipe, name, steps)
        print(f"\n{name}, seed {seed}:")
        write_report({run: runs[run] for run in every if run in runs}, latencies)


def write_report(runs: Runs, latencies: Latencies) -> None:
    """Writes what is known so far: study.json, study.md, study.png and errors.png."""
    rows = summarise(runs, latencies)
    every = [{"arm": arm, "seed": seed, **run} for (arm, seed), run in runs.items()]
    facts = {"protocol": shared_facts(runs), "arms": {name: ARMS[name].what for name, _ in runs}, "runs": every}
    report.write(os.path.join(OUT.value, "study.json"), rows, environment=report.environment(), **facts)
    write_plot(os.path.join(OUT.value, "study.png"), rows)
    write_errors(os.path.join(OUT.value, "errors.png"), runs)


def check(recipe, names: Sequence[str], seeds: Sequence[int], steps: Sequence[int]) -> None:
    """Raises ValueError, naming it, for an arm, field or folder that would only fail when its turn comes."""
    needs_annotated_boxes(recipe, "the study")
    for name in names:
        if name not in ARMS:
            raise ValueError(f"--arms={name}: must be among {', '.join(ARMS)}")
        config = arm_config(recipe, ARMS[name], 0, recipe.train.steps)
        check_fields(config)
        make_readings(config, ARMS[name], steps, NOISE_TIME.value)
    if not REPORT_ONLY.value:
        for split, training in (("train", True), (recipe.eval.split, False)):
            make_source(recipe, split, training=training)
    for name, seed in itertools.product(names, seeds):
        if count := known_count(recipe, name, seed):
            check_folder(_folder(name, seed), asked(arm_config(recipe, ARMS[name], seed, count), steps))


def known_count(recipe, name: str, seed: int) -> int | None:
    """How many steps a run trains for; None if that has to be timed first."""
    if not ARMS[name].same_time:
        return recipe.train.steps
    path = _readings_path(name, seed)
    return read_json(path)["run"]["steps"] if os.path.exists(path) else None


def asked(config, steps: Sequence[int]) -> dict:
    """What decides the figures of a run, as JSON: its config, and the flags of what is read."""
    return {"config": json.loads(config.to_json_best_effort()), "K": list(steps), "noise_time": NOISE_TIME.value}


def check_folder(workdir: str, wanted: dict) -> None:
    """Raises ValueError, naming what differs, if a run is there, finished or not, that is not as `wanted`."""
    path = os.path.join(workdir, READ_FILE)
    if os.path.exists(path):
        found = {key: value for key, value in read_json(path).items() if key in wanted}
    elif holds_checkpoint(workdir):
        path = workdir
        found = wanted | {"config": {k: v for k, v in stored_config(workdir).items() if k != "joint_set_facts"}}
    else:
        return
    theirs, ours = (flatten_dict(one, sep=".") for one in (found, wanted))
    different = [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
    if different:
        said = ", ".join(f"{name}={theirs.get(name)} there and {ours.get(name)} here" for name in different)
        raise ValueError(f"{path}: is of another config or other flags: {said}; choose another --out, or delete it")


def _folder(name: str, seed: int) -> str:
    return os.path.join(OUT.value, name, f"seed_{seed}")


def _readings_path(name: str, seed: int) -> str:
    return os.path.join(_folder(name, seed), READ_FILE)


def run_once(recipe, name: str, seed: int, steps: Sequence[int]) -> dict:
    """One run, from its folder if it is finished: `{"steps", "epochs", "readings", "protocol"}`.

    Raises:
      ValueError: if the folder holds a run of another config.
    """
    arm, workdir = ARMS[name], _folder(name, seed)
    count = known_count(recipe, name, seed) or round(recipe.train.steps * pace(recipe, name))
    config = arm_config(recipe, arm, seed, count)
    path, wanted = _readings_path(name, seed), asked(config, steps)
    check_folder(workdir, wanted)
    if os.path.exists(path):
        done = read_json(path)
        return done["run"] | {"protocol": done["protocol"]}
    train(config, workdir)
    restored = restore(config, workdir)
    source = make_source(config, config.eval.split, training=False)
    found = predict(config, arm, restored.variables, source, steps, NOISE_TIME.value)
    readings, denoised = score(config, source, found), [name for name in found if name.startswith("direct_")]
    if denoised:
        write_changes(workdir, config, source, found, "coarse", denoised[0])
    persons = len(make_source(config, "train", training=True))
    run = {"steps": count, "epochs": count * config.train.batch_size / persons, "readings": readings}
    protocol = protocol_facts(config, build_model(config), restored) | {"persons": len(source)}
    write_json(path, wanted | {"protocol": protocol, "run": run})
    jax.clear_caches()  # no program serves two arms
    return run | {"protocol": protocol}


def shared_facts(runs: Runs) -> dict:
    """The facts of the protocol that are the same in every run and for every reading."""
    first, *others = (run["protocol"] for run in runs.values())
    same = {name for name, value in first.items() if all(other.get(name) == value for other in others)}
    return {name: value for name, value in first.items() if name in same and name not in VARIES}


def latency_once(recipe, name: str, steps: Sequence[int]) -> dict[str, dict]:
    """`readings.latency` of an arm, measured once for a config and kept in its folder; {} if --report_only has none."""
    config = arm_config(recipe, ARMS[name], 0, recipe.train.steps)

    def measure() -> dict:
        if REPORT_ONLY.value:
            print(f"{name}: no latency is kept that was timed with these settings")
            return {}
        source = make_source(config, config.eval.split, training=False)
        measured = latency(config, ARMS[name], source, steps, NOISE_TIME.value, SECONDS.value)
        return {"environment": report.environment(), "latency": measured}

    return _kept(os.path.join(OUT.value, name, LATENCY_FILE), asked(config, steps), measure).get("latency", {})


def pace(recipe, name: str) -> float:
    """How many steps of an arm fit in the time of one of the recipe: timed in turn once, and kept in its folder."""

    def measure() -> dict:
        calls = flatten_dict({arm: _steppers(recipe, arm) for arm in (name, "recipe")})
        timings = unflatten_dict(report.measure(calls, seconds=10))
        seconds = {arm: _mean_step(by_phase) for arm, by_phase in timings.items()}
        ratio = seconds["recipe"] / seconds[name]
        return {"environment": report.environment(), "seconds": seconds, "ratio": ratio}

    config = arm_config(recipe, ARMS[name], 0, recipe.train.steps)
    wanted = {"config": json.loads(config.to_json_best_effort())}
    return _kept(os.path.join(OUT.value, name, PACE_FILE), wanted, measure)["ratio"]


def _kept(path: str, wanted: dict, measure: Callable[[], dict]) -> dict:
    """What was measured as `wanted` and kept; else measured, and kept if that gave anything."""
    kept = read_json(path) if os.path.exists(path) else {}
    if {key: kept.get(key) for key in wanted} == wanted:
        return kept
    if measured := measure():
        write_json(path, wanted | measured)
        jax.clear_caches()
    return wanted | measured


def _steppers(recipe, name: str) -> dict[int, Callable]:
    """Calls that take one training step of an arm, always with the same batch: by the last step of each phase."""
    run = prepare(arm_config(recipe, ARMS[name], 0, recipe.train.steps))
    with contextlib.closing(run.data):
        batch = sharding.put_batch(run.read(), run.mesh)
    state = run.state

    def take(step):
        nonlocal state
        state, metrics = step(state, batch, run.key)
        return metrics["loss"]

    return {last: functools.partial(take, step) for last, step in run.phases}


def _mean_step(timings: dict[int, report.Timing]) -> float:
    """Seconds of a step, the mean over a run: from those of each phase, by its last step."""
    return float(np.average([timing.median for timing in timings.values()], weights=np.diff([0, *timings])))


def summarise(runs: Runs, latencies: Latencies) -> list[dict]:
    """A row a reading of an arm: means over seeds, standard errors, AP gained on each of CONTROLS, and its latency.

    A gain is paired, seed by seed, with the control's by the same decoding; without a second seed there is no standard
    error. What an earlier version finished may lack a reading, whose row then has fewer `seeds`, or no latency.
    """
    rows = []
    for arm in dict.fromkeys(name for name, _ in runs):
        every = {seed: run["readings"] for (name, seed), run in runs.items() if name == arm}
        for reading in dict.fromkeys(reading for readings in every.values() for reading in readings):
            its = {seed: readings[reading] for seed, readings in every.items() if reading in readings}
            row = {"arm": arm, "reading": reading, "seeds": len(its)}
            for metric in METRICS:
                row[metric], error = _mean([metrics[metric] for metrics in its.values()])
                if metric == "AP":
                    row["AP se"] = error
            way, *decoding = reading.split(" ", 1)
            for gain, (control, its_way) in CONTROLS.items():
                like = " ".join([its_way, *decoding])
                paired = [
                    metrics["AP"] - runs[control, seed]["readings"][like]["AP"]
                    for seed, metrics in its.items()
                    if (control, seed) in runs and like in runs[control, seed]["readings"]
                ]
                row[gain], row[f"{gain} se"] = _mean(paired)
            rows.append(row | latencies[arm].get(way, {}))
    return rows


def _mean(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and its standard error of the values that are not None, None where there is none."""
    found = [value for value in values if value is not None]
    if not found:
        return None, None
    error = float(np.std(found, ddof=1) / len(found) ** 0.5) if len(found) > 1 else None
    return float(np.mean(found)), error
