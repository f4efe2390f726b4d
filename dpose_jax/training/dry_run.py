"""A rehearsal of a training run: checks everything, takes a few steps, and estimates the rest."""

import contextlib
import time

import jax
import numpy as np

from dpose_jax.data.datasets import make_source
from dpose_jax.data.statistics import describe
from dpose_jax.evaluation.evaluator import Evaluator
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import multihost, sharding
from dpose_jax.training.loop import prepare
from dpose_jax.workdir.checkpoints import check_workdir, holds_checkpoint

TIMED_STEPS = 3  # of each phase, after a first one


def dry_run(recipe: Recipe, workdir: str) -> None:
    """Checks recipe, data and workdir, runs a few batches, prints what the run will need, and stops.

    Nothing is written. The first process prints parameters, memory of the compiled step, examples a second (reading
    included) and the time of all steps, without evaluations. Raises what `train` raises before its first step, and what
    `evaluate` would raise about the data.
    """
    check_workdir(recipe, workdir, training=True)
    run = prepare(recipe, resumes=holds_checkpoint(workdir))
    if recipe.train.evaluate_every:
        Evaluator(recipe, run.mesh)
    for title, source in (("train data: ", run.source), ("val data:   ", make_source(recipe, "val", training=False))):
        for line in describe(source, recipe.data.orientation):
            multihost.say(f"{title} {line}")
    state, memory, compile_seconds, run_seconds, before = run.state, 0, 0.0, 0.0, 0
    with contextlib.closing(run.data):
        for phase in run.phases:
            began = time.monotonic()
            batch = sharding.put_batch(run.next_batch(), run.mesh)
            compiled = phase.step.lower(state, batch, run.key).compile()
            compile_seconds += time.monotonic() - began
            needs = compiled.memory_analysis()
            memory = max(memory, needs.argument_size_in_bytes + needs.temp_size_in_bytes)
            seconds = []
            for _ in range(1 + TIMED_STEPS):
                began = time.monotonic()
                state, metrics = jax.block_until_ready(compiled(state, batch, run.key))
                batch = sharding.put_batch(run.next_batch(), run.mesh)
                seconds.append(time.monotonic() - began)
            run_seconds += (phase.last - before) * float(np.median(seconds[1:]))
            before = phase.last
    pace, hours = run_seconds / recipe.train.steps, (compile_seconds + run_seconds) / 3600
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    multihost.say(f"devices:     {run.mesh.size} x {jax.devices()[0].device_kind}")
    multihost.say(f"parameters:  {parameters / 1e6:.2f} M")
    multihost.say(f"memory:      {memory / 2**20:.0f} MiB a device: arguments and temporaries of the compiled step")
    multihost.say(f"loss:        {float(metrics['loss']):.5f} after {len(run.phases) * (1 + TIMED_STEPS)} steps")
    multihost.say(f"compilation: {compile_seconds:.0f} s")
    multihost.say(f"speed:       {recipe.train.batch_size / pace:.1f} examples/s, {pace * 1e3:.0f} ms a step")
    multihost.say(f"whole run:   {recipe.train.steps} steps, {hours:.2f} h, evaluations not counted")
