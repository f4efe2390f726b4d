"""The training run: check and build everything, then step, log, save, evaluate."""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from dpose_jax.data import doubts
from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import train_iterator
from dpose_jax.data.sample import Source
from dpose_jax.data.statistics import describe
from dpose_jax.diffusion.process import Schedule
from dpose_jax.evaluation.evaluator import Evaluator
from dpose_jax.models.diffusion_pose import DiffusionPose, build_model, build_schedule
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import cpu, flat, multihost, sharding
from dpose_jax.runtime.shortage import named_shortage
from dpose_jax.training.changes import changes, fingerprint, held
from dpose_jax.training.cpu_step import CpuStep
from dpose_jax.training.initial_weights import random_variables, starting_variables
from dpose_jax.training.memory import ways_to_fit
from dpose_jax.training.metrics import MetricsWriter, StepLog
from dpose_jax.training.optimizer import kept_parts, make_optimizer
from dpose_jax.training.preemption import Preempted, Preemption
from dpose_jax.training.profiling import Trace
from dpose_jax.training.state import TrainState, evaluated_variables, initial_state
from dpose_jax.training.step import make_gradients, make_train_step, make_update
from dpose_jax.workdir.checkpoints import Checkpoints, check_workdir, claim_workdir, holds_checkpoint
from dpose_jax.workdir.lock import locked
from dpose_jax.workdir.once import facts_of
from dpose_jax.workdir.starts import record_start

COMPILING = "minutes for a large model, seconds if it was compiled before"


def train(recipe: Recipe, workdir: str) -> None:
    """Trains to `train.steps`, from the newest checkpoint of `workdir` if there is one.

    Writes checkpoints/, config.json, run.json, metrics.jsonl and tensorboard/ into `workdir`. Of several processes the
    first one writes, but each its part of the checkpoints.

    Raises ValueError or FileNotFoundError before the first compile if recipe, data or workdir break a rule, ValueError
    later if too many records are unreadable, DivergedError if a loss or gradient is not finite (nothing of that step is
    saved), OSError if the workdir or a checkpoint cannot be written (older checkpoints stay whole), and Preempted after
    SIGTERM, once the step that was being computed is saved.
    """
    check_workdir(recipe, workdir, training=True)
    multihost.check_hosts(recipe, workdir)
    total = recipe.train.steps
    with contextlib.ExitStack() as stack:
        multihost.from_first(lambda: stack.enter_context(locked(workdir)))
        run = prepare(recipe, resumes=holds_checkpoint(workdir))
        stack.callback(run.data.close)
        evaluator = Evaluator(recipe, run.mesh) if recipe.train.evaluate_every else None
        for line in describe(run.source, recipe.data.orientation, doubts.SAMPLE):
            multihost.say(f"data: {line}")
        for line in held(recipe):
            multihost.say(f"held: {line}")
        checkpoints = stack.enter_context(Checkpoints(workdir, recipe.train.keep_checkpoints))
        start, data = checkpoints.latest or 0, {"persons": len(run.source), "sha256": fingerprint(run.source)}
        if evaluator is not None:
            data["evaluated"] = fingerprint(evaluator.source)
        multihost.check_same({"the data": data, "the newest checkpoint": start})
        if start:
            end = "" if start < total else f": nothing to train, raise train.steps={total} to go on"
            multihost.say(f"resuming at step {start} of {total}{end}")
            for line in changes(recipe, workdir, start, data):
                multihost.say(f"since the checkpoint: {line}")
            run = dataclasses.replace(run, state=checkpoints.restore(run.state, run.data))
        writers = list[MetricsWriter]()  # of the first process

        def open_workdir() -> None:
            if start < total:
                claim_workdir(recipe, workdir)
                record_start(workdir, start, data, recipe)
            writers.append(MetricsWriter(workdir, start))
            stack.callback(writers[0].close)

        multihost.from_first(open_workdir)
        log = StepLog(recipe.data, recipe.train, run.source, start, writers[0] if writers else None)
        trace = stack.enter_context(Trace(recipe.profile_steps, start, os.path.join(workdir, "profile")))
        with named_shortage(ways_to_fit(recipe)):
            _take_steps(run, start, checkpoints, log, trace, evaluator)
    if start < total:
        multihost.say(f"done: {os.path.join(checkpoints.folder, str(total))}")
        evaluate, predict = (f"python {program}.py --workdir={workdir}" for program in ("eval", "predict"))
        multihost.say(f"next: {evaluate}; {predict} --input=FILE --out=DIR")


def _take_steps(
    run: "Run", start: int, checkpoints: Checkpoints, log: StepLog, trace: Trace, evaluator: Evaluator | None
) -> None:
    options, total, state = run.recipe.train, run.recipe.train.steps, run.state
    shown = {"dynamic_ncols": True, "mininterval": 1.0, "disable": not multihost.is_first()}

    def evaluates(step: int) -> bool:
        return evaluator is not None and (step % options.evaluate_every == 0 or step == total)

    def evaluate(step: int) -> None:
        """Adds its AP to the checkpoint of `step`, which is saved; raises Preempted if SIGTERM comes meanwhile."""
        assert evaluator is not None
        show = functools.partial(log.show, step) if multihost.is_first() else None
        variables = flat.unflatten(evaluated_variables(state, ema=run.recipe.eval.ema))
        ap = evaluator.best_ap(variables, preemption.due, show)
        if ap is None:
            raise Preempted(step, preemption.name)
        log.write(step, {"AP": ap})
        log.keep()
        checkpoints.add_ap(step, ap)

    with tqdm(total=total, initial=start, unit="step", **shown) as bar, Preemption() as preemption:
        if start and evaluates(start) and not checkpoints.evaluated(start):
            evaluate(start)
        for step in range(start + 1, total + 1):
            starts = step == start + 1 or run.phase(step) is not run.phase(step - 1)
            if starts and multihost.is_first():
                bar.write(f"compiling the step, {run.phase(step).name}; {COMPILING}")
            if starts and jax.default_backend() == "cpu":
                spec = run.batch_spec()
                run.data.start()  # which reads meanwhile
                run.phase(step).compile(state, spec, run.key)
            rows = run.next_batch()
            batch = sharding.put_batch(rows, run.mesh)
            # What no line asks for is not moved between host and device, which would make one wait for the other.
            with jax.transfer_guard("disallow"):
                state, metrics = run.train_step(step, state, batch)
                # The metrics of the step before are read while this step computes.
                log.push(step, metrics, rows)
            trace.after(step, metrics)
            bar.update()
            bar.set_postfix_str(log.line, refresh=False)
            stop = preemption.due()
            if stop or evaluates(step) or step % options.checkpoint_every == 0 or step == total:
                with log.pause():
                    checkpoints.save(step, state, run.data)
                    if evaluates(step) and not stop:
                        evaluate(step)
            if stop and (step < total or evaluates(step)):
                raise Preempted(step, preemption.name)


class Phase(NamedTuple):
    """A part of the run that has a compiled step of its own, up to and with step `last`."""

    name: str
    last: int
    step: Any

    def compile(self, state: TrainState, batch: dict[str, Any], key: jax.Array) -> int:
        """Compiles the step, which the first call then takes: bytes a device of state, batch and what the step needs.

        On a CPU the memory that compiling took is free again.
        """
        needs = self.step.lower(state, batch, key).compile().memory_analysis()
        cpu.release_freed_memory()
        shapes = [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves((state, batch))]
        given = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
        made = needs.temp_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
        return max(given, needs.argument_size_in_bytes) + made


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of, checked before anything is compiled."""

    recipe: Recipe
    mesh: jax.sharding.Mesh
    source: Source
    data: Any  # iterator of host-local batches, with its position
    state: TrainState
    key: jax.Array  # of all that steps draw
    phases: tuple[Phase, ...]

    def next_batch(self) -> dict[str, np.ndarray]:
        """The next host-local batch."""
        return next(self.data)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `sharding.put_batch` makes of a batch, without its values."""
        local, place = self.data.spec(), sharding.batch_sharding(self.mesh)
        hosts = jax.process_count()
        return {
            name: jax.ShapeDtypeStruct((shape[0] * hosts, *shape[1:]), dtype, sharding=place)
            for name, (shape, dtype) in local.items()
        }

    def train_step(self, number: int, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict]:
        """The `number`-th step of the run, from 1: the new state, and the step's metrics. The state is donated."""
        return self.phase(number).step(state, batch, self.key)

    def phase(self, number: int) -> "Phase":
        """The phase of the `number`-th step."""
        return next(phase for phase in self.phases if number <= phase.last)


def prepare(recipe: Recipe, *, resumes: bool = False) -> Run:
    """Builds a run at step 0. If it `resumes`, a checkpoint will replace its state, and `model.pretrained` is not read.

    Raises ValueError or FileNotFoundError if the recipe, the data or the pretrained weights break a rule; it names the
    field or file.
    """
    mesh = sharding.make_mesh()
    train, every = recipe.train, recipe.diffusion.every
    sharding.check_batch_size("train.batch_size", train.batch_size, mesh, train.accumulate, every)
    model, schedule = build_model(recipe), build_schedule(recipe.diffusion)
    optimizer = make_optimizer(recipe.optim, train, kept_parts(recipe))
    frozen = min(recipe.optim.freeze_backbone_steps, train.steps)
    parts = [("frozen backbone", frozen, model.clone(freeze_backbone=True))] if frozen else []
    parts += [("all", train.steps, model)] if frozen < train.steps else []
    alone = mesh.size == 1 and jax.default_backend() == "cpu"
    if alone:
        steps = [_cpu_step(recipe, part, schedule, optimizer, mesh) for _, _, part in parts]
        steps[-1 if resumes else 0].start_loading()
    source = multihost.agreed(lambda: make_source(recipe, "train", training=True))
    data = train_iterator(recipe, source, shard=(jax.process_index(), jax.process_count()))
    variables = (random_variables if resumes else starting_variables)(recipe, model)
    if alone:
        variables = {name: flat.flatten(modules) for name, modules in variables.items()}
    # As one program, the state of few vectors takes half of the time.
    state = (jax.jit(initial_state, static_argnums=1) if alone else initial_state)(variables, optimizer)
    places = sharding.state_sharding(mesh, state, fsdp=train.fsdp)
    state = jax.device_put(state, places)
    if not alone:
        unshard = sharding.unshard(mesh)
        steps = [
            jit_step(make_train_step(recipe, part, schedule, optimizer, unshard), mesh, places) for _, _, part in parts
        ]
    phases = tuple(Phase(name, last, step) for (name, last, _), step in zip(parts, steps, strict=True))
    # By a program, since device_put takes no typed key to the devices of other hosts.
    key = jax.jit(jax.random.key, static_argnums=0, out_shardings=sharding.replicated(mesh))(recipe.seed)
    return Run(recipe, mesh, source, data, state, key, phases)


def _cpu_step(
    recipe: Recipe, model: DiffusionPose, schedule: Schedule, optimizer: optax.GradientTransformation, mesh: Mesh
) -> CpuStep:
    facts = facts_of(model.backbone)
    inputs = None if facts is None else repr((recipe, recipe.joints, model.freeze_backbone, facts))
    # Those of parts, and of a module from elsewhere, are averaged one after the other.
    moments = facts is not None and recipe.train.accumulate == 1
    gradients = make_gradients(recipe, model, schedule, moments=moments)
    return CpuStep(gradients, make_update(recipe, optimizer), mesh, inputs, moments=moments)


def jit_step(step: Callable, mesh: jax.sharding.Mesh, places: Any) -> Any:
    """The jitted train step. `places` are the state's shardings, kept from step to step; the state is donated."""
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    return jax.jit(step, in_shardings=(places, rows, whole), out_shardings=(places, whole), donate_argnums=0)
