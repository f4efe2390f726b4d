"""The training run: prepare and check everything, then step, log, save."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import train_iterator
from dpose_jax.data.sample import Source
from dpose_jax.evaluation.evaluator import Evaluator
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import initial_variables
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import multihost, sharding
from dpose_jax.training.initial_weights import starting_variables
from dpose_jax.training.metrics import MetricsWriter, StepLog
from dpose_jax.training.preemption import Preempted, Preemption
from dpose_jax.training.profiling import Trace
from dpose_jax.training.state import TrainState, count_parameters, evaluated_variables, initial_state, make_optimizer
from dpose_jax.training.step import make_train_step
from dpose_jax.workdir.checkpoints import Checkpoints, check_workdir, claim_workdir, holds_checkpoint

DRY_RUN_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of, checked before anything is compiled."""

    config: Recipe
    mesh: jax.sharding.Mesh
    source: Source
    data: Any
    state: TrainState
    key: jax.Array  # of all that steps draw
    phases: tuple[tuple[int, Any], ...]  # the compiled steps in order, each with the last step that it takes

    def read(self) -> dict[str, np.ndarray]:
        """The next host-local batch."""
        return next(self.data)

    def step_at(self, number: int) -> Any:
        """The compiled step that is the `number`-th of the run, from 1."""
        return next(step for last, step in self.phases if number <= last)

    def take(self, number: int, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict]:
        """The `number`-th step of the run, from 1: the new state, and the step's metrics; the state is donated."""
        return self.step_at(number)(state, batch, self.key)


def shown_report(source: Source) -> str:
    """The counters of a source that are not zero, as text."""
    return ", ".join(f"{name} {count}" for name, count in source.report().items() if count)


def prepare(config: Recipe, *, resumes: bool = False) -> Run:
    """Builds a run at step 0 from a config.

    Args:
      resumes: a checkpoint will replace the state, so `config.model.pretrained` is not read.

    Raises:
      ValueError, FileNotFoundError: if the config, the data or the pretrained weights break a rule; names the field or
        file.
    """
    mesh = sharding.make_mesh()
    sharding.check_batch_size("train.batch_size", config.train.batch_size, mesh, config.train.accumulate)
    model, schedule, optimizer = (
        build_model(config),
        build_schedule(config.diffusion),
        make_optimizer(config.optim, config.train),
    )
    make_step = functools.partial(
        make_train_step, config, schedule=schedule, optimizer=optimizer, gather=sharding.gather(mesh)
    )
    source = make_source(config, "train", training=True)
    shard = (jax.process_index(), jax.process_count())
    data = train_iterator(config, source, shard=shard)
    variables = initial_variables(model, config.seed) if resumes else starting_variables(config, model)
    state = initial_state(variables, optimizer)
    places = sharding.state_sharding(mesh, state, fsdp=config.train.fsdp)
    state = jax.device_put(state, places)
    held, total = config.optim.freeze_backbone_steps, config.train.steps
    phases = [
        (last, jit_step(make_step(model.clone(freeze_backbone=last <= held)), mesh, places))
        for last in sorted({min(held, total), total} - {0})
    ]
    # By a program, since device_put takes no typed key to the devices of other hosts.
    key = jax.jit(jax.random.key, static_argnums=0, out_shardings=sharding.replicated(mesh))(config.seed)
    return Run(config, mesh, source, data, state, key, tuple(phases))


def jit_step(step: Callable, mesh: jax.sharding.Mesh, places: Any) -> Any:
    """The train step as it is compiled: `places` are the state's shardings, kept from step to step; it is donated."""
    return jax.jit(
        step,
        in_shardings=(places, sharding.batch_sharding(mesh), sharding.replicated(mesh)),
        out_shardings=(places, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def train(config: Recipe, workdir: str) -> None:
    """Trains to `config.train.steps`, from the newest checkpoint of `workdir` if there is one.

    Writes checkpoints/, config.json, metrics.jsonl and tensorboard/ into `workdir`; of several processes the first
    one writes, but all of them their parts of checkpoints.

    Raises:
      ValueError, FileNotFoundError: before the first compile, if config, data or workdir break a rule; ValueError
        later, if too many records are unreadable.
      DivergedError: if a loss or gradient is not finite; nothing of that step is saved.
      OSError: if the workdir cannot be written, or a checkpoint later on; what was saved earlier is whole.
      Preempted: after SIGTERM, and a checkpoint of the step that was being computed.
    """
    run = prepare(config, resumes=holds_checkpoint(workdir))
    check_workdir(config, workdir, training=True)
    evaluator = Evaluator(config, run.mesh) if config.train.evaluate_every else None
    multihost.say(f"data: {shown_report(run.source)}")
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    state, start = run.state, checkpoints.latest or 0
    if multihost.is_first() and start < config.train.steps:
        claim_workdir(config, workdir)
    if start:
        state = checkpoints.restore(jax.tree.map(_abstract, state), run.data)
        multihost.say(f"resuming at step {start} of {config.train.steps}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(checkpoints))
        stack.enter_context(contextlib.closing(run.data))
        writer = (
            stack.enter_context(contextlib.closing(MetricsWriter(workdir, start))) if multihost.is_first() else None
        )
        log = StepLog(config, run.source, start, writer)
        trace = stack.enter_context(Trace(config.profile_steps, start, os.path.join(workdir, "profile")))
        _steps(run, state, start, checkpoints, log, trace, evaluator)


def _steps(run: Run, state, start: int, checkpoints: Checkpoints, log: StepLog, trace: Trace, evaluator) -> None:
    options, total = run.config.train, run.config.train.steps
    shown = {"dynamic_ncols": True, "mininterval": 1.0, "disable": not multihost.is_first()}

    def scored(step: int) -> bool:
        return evaluator is not None and (step % options.evaluate_every == 0 or step == total)

    with tqdm(total=total, initial=start, unit="step", **shown) as bar, Preemption() as preemption:
        if start and scored(start) and not checkpoints.evaluated(start):
            _make_up(evaluator, state, start, checkpoints, log, preemption)
        for step in range(start + 1, total + 1):
            batch = sharding.put_batch(run.read(), run.mesh)
            # What no line asks for is not moved between host and device, which would make one wait for the other.
            with jax.transfer_guard("disallow"):
                state, metrics = run.take(step, state, batch)
                # The step before this one is read while this one computes.
                log.push(step, metrics)
            trace.after(step, metrics)
            bar.update()
            bar.set_postfix_str(log.line, refresh=False)
            stop = preemption.due()
            due, ap = scored(step), None
            if stop or due or step % options.checkpoint_every == 0 or step == total:
                evaluate = functools.partial(_best_ap, evaluator, state, preemption) if due and not stop else None
                with log.pause():
                    ap = _save(checkpoints, log, step, state, run.data, evaluate)
            if preemption.told and (step < total or (due and ap is None)):
                raise Preempted(step)


def _best_ap(evaluator: Evaluator, state: TrainState, preemption: Preemption) -> float | None:
    return evaluator.best_ap(evaluated_variables(state, ema=evaluator.recipe.eval.ema), preemption.due)


def _make_up(evaluator: Evaluator, state, step: int, checkpoints: Checkpoints, log: StepLog, preemption) -> None:
    """Evaluates the checkpoint that the run goes on from, where that was broken off."""
    ap = _best_ap(evaluator, state, preemption)
    if ap is None:
        raise Preempted(step)
    log.write(step, {"AP": ap})
    log.keep()
    checkpoints.add_ap(step, ap)


def _save(checkpoints: Checkpoints, log: StepLog, step: int, state, data, evaluate: Callable | None) -> float | None:
    """Saves a step with the AP that `evaluate` gives, and returns that; without it before an error of it goes on."""
    try:
        ap = evaluate() if evaluate is not None else None
    except Exception as error:
        # A ValueError comes to all processes alike; of anything else the others know nothing, and would not save.
        if isinstance(error, ValueError) or jax.process_count() == 1:
            log.keep()
            checkpoints.save(step, state, data)
        raise
    if ap is not None:
        log.write(step, {"AP": ap})
    log.keep()
    checkpoints.save(step, state, data, ap)
    return ap


def dry_run(config: Recipe, workdir: str) -> None:
    """Checks config, data and workdir, runs a few batches, prints what the run will need, and stops.

    Nothing is written. The first process prints parameters, memory of the compiled step, examples a second (reading
    included) and the time of all steps, without evaluations.

    Raises:
      what `train` raises before its first step, and what `evaluate` would raise about the data.
    """
    run = prepare(config, resumes=holds_checkpoint(workdir))
    check_workdir(config, workdir, training=True)
    if config.train.evaluate_every:
        Evaluator(config, run.mesh)
    multihost.say(f"train data:  {shown_report(run.source)}")
    multihost.say(f"val data:    {shown_report(make_source(config, 'val', training=False))}")
    with contextlib.closing(run.data):
        state, size, compile_seconds, run_seconds, before = run.state, 0, 0.0, 0.0, 0
        for last, step in run.phases:
            began = time.monotonic()
            batch = sharding.put_batch(run.read(), run.mesh)
            compiled = step.lower(state, batch, run.key).compile()
            compile_seconds += time.monotonic() - began
            memory = compiled.memory_analysis()
            size = max(size, memory.argument_size_in_bytes + memory.temp_size_in_bytes)
            seconds = []
            for _ in range(1 + DRY_RUN_STEPS):
                began = time.monotonic()
                state, metrics = jax.block_until_ready(compiled(state, batch, run.key))
                batch = sharding.put_batch(run.read(), run.mesh)
                seconds.append(time.monotonic() - began)
            run_seconds += (last - before) * float(np.median(seconds[1:]))
            before = last
    step_seconds = run_seconds / config.train.steps
    total_hours = (compile_seconds + run_seconds) / 3600
    report = {
        "devices": f"{run.mesh.size} x {jax.devices()[0].device_kind}",
        "parameters": f"{count_parameters(state.params) / 1e6:.2f} M",
        "memory": f"{size / 2**20:.0f} MiB a device: arguments and temporaries of the compiled step",
        "loss": f"{float(metrics['loss']):.5f} after {len(run.phases) * (1 + DRY_RUN_STEPS)} steps",
        "compilation": f"{compile_seconds:.0f} s",
        "speed": f"{config.train.batch_size / step_seconds:.1f} examples/s, {step_seconds * 1e3:.0f} ms a step",
        "whole run": f"{config.train.steps} steps, {total_hours:.2f} h, evaluations not counted",
    }
    for name, text in report.items():
        multihost.say(f"{name + ':':<13}{text}")


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
