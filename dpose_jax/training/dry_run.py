"""A rehearsal of a training run: checks everything, takes a few steps, and estimates the rest."""

import contextlib
import time

import jax
import numpy as np

from dpose_jax.data.datasets import make_source
from dpose_jax.data.statistics import describe
from dpose_jax.evaluation.evaluator import Evaluator
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import multihost, sharding
from dpose_jax.runtime.shortage import named_shortage
from dpose_jax.training.changes import held
from dpose_jax.training.loop import COMPILING, prepare
from dpose_jax.training.memory import check_fits, ways_to_fit
from dpose_jax.training.step import kept_activations
from dpose_jax.workdir.checkpoints import check_workdir, holds_checkpoint

TIMED_STEPS = 3  # of each phase, after a first one


def dry_run(recipe: Recipe, workdir: str) -> None:
    """Checks recipe, data and workdir, runs a few batches, prints what the run will need, and stops.

    Nothing is written. The first process prints parameters, memory of the compiled step, examples a second (reading
    included), epochs and the time of all steps, without evaluations. Raises what `train` raises before its first step,
    what `evaluate` would raise about the data, and ValueError, before the first step, if it does not fit into memory.
    """
    check_workdir(recipe, workdir, training=True)
    run = prepare(recipe, resumes=holds_checkpoint(workdir))
    if recipe.train.evaluate_every:
        Evaluator(recipe, run.mesh)
    for title, source in (("train data: ", run.source), ("val data:   ", make_source(recipe, "val", training=False))):
        for line in describe(source, recipe.data.orientation):
            multihost.say(f"{title} {line}")
    for line in held(recipe):
        multihost.say(f"held:        {line}")
    state, parameters = run.state, sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    multihost.say(f"devices:     {run.mesh.size} x {jax.devices()[0].device_kind}")
    multihost.say(f"parameters:  {parameters / 1e6:.2f} M")
    compile_seconds, run_seconds, before = 0.0, 0.0, 0
    with contextlib.closing(run.data), named_shortage(ways_to_fit(recipe)):
        if run.phases[-1].name == "all":  # before anything is read: a batch that is far too large takes minutes
            model, schedule = build_model(recipe), build_schedule(recipe.diffusion)
            kept = kept_activations(recipe, model, schedule, state, run.batch_spec()) // run.mesh.size
            multihost.say(f"activations: {kept / 2**20:.0f} MiB a device at least, for the backward pass")
            check_fits(kept, recipe)
        batch = sharding.put_batch(run.next_batch(), run.mesh)
        for phase in run.phases:
            multihost.say(f"compiling:   the step, {phase.name}; {COMPILING}")
            began = time.monotonic()
            memory = phase.compile(state, batch, run.key)
            compile_seconds += time.monotonic() - began
            what = "state, batch and temporaries of the compiled step"
            multihost.say(f"memory:      {memory / 2**20:.0f} MiB a device: {what}")
            check_fits(memory, recipe)
            multihost.say(f"steps:       {1 + TIMED_STEPS} are taken")
            seconds = []
            for _ in range(1 + TIMED_STEPS):
                began = time.monotonic()
                state, metrics = jax.block_until_ready(phase.step(state, batch, run.key))
                batch = sharding.put_batch(run.next_batch(), run.mesh)
                seconds.append(time.monotonic() - began)
            run_seconds += (phase.last - before) * float(np.median(seconds[1:]))
            before = phase.last
    pace, hours = run_seconds / recipe.train.steps, (compile_seconds + run_seconds) / 3600
    multihost.say(f"loss:        {float(metrics['loss']):.5f} after {len(run.phases) * (1 + TIMED_STEPS)} steps")
    multihost.say(f"compilation: {compile_seconds:.0f} s")
    multihost.say(f"speed:       {recipe.train.batch_size / pace:.1f} examples/s, {pace * 1e3:.0f} ms a step")
    epochs = recipe.train.steps * recipe.train.batch_size / len(run.source)
    amount = f"{recipe.train.steps} steps, {epochs:.4g} epochs of {len(run.source)} persons"
    multihost.say(f"whole run:   {amount}, {hours:.2f} h, evaluations not counted")
