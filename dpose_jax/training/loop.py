"""The training run: prepare and check everything, then step, log, save."""

import contextlib
import dataclasses
import time
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from dpose_jax import parallel
from dpose_jax.data.pipeline import train_iterator
from dpose_jax.data.records import Source
from dpose_jax.data.sources import make_source
from dpose_jax.diffusion.sampler import sampler_settings
from dpose_jax.evaluation.coco import ENGINES
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import initial_variables
from dpose_jax.training.checkpoints import Checkpoints, check_workdir, claim_workdir, holds_checkpoint
from dpose_jax.training.metrics import BadRecords, MetricsWriter
from dpose_jax.training.start import starting_variables
from dpose_jax.training.state import TrainState, count_parameters, initial_state, learning_rate, make_optimizer
from dpose_jax.training.step import LOSS_TERMS, make_train_step

DRY_RUN_STEPS = 3


class DivergedError(Exception):
    """A loss or gradient is NaN or infinite; the message names the step, the term and the annotation ids."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of, checked before anything is compiled."""

    config: Any
    mesh: jax.sharding.Mesh
    source: Source
    data: Any
    rate: optax.Schedule
    state: TrainState
    step: Any
    frozen_step: Any  # with the backbone held, for the first steps

    def read(self) -> dict[str, np.ndarray]:
        """The next host-local batch."""
        return next(self.data)

    def step_at(self, number: int) -> Any:
        """The compiled step that is the `number`-th of the run, from 1."""
        return self.frozen_step if number <= self.config.optim.freeze_backbone_steps else self.step


def check_fields(config) -> None:
    """Raises ValueError, naming the field, for what would otherwise fail only after the first compile."""
    train, data, eval_ = config.train, config.data, config.eval
    for name, value, low in (
        ("train.steps", train.steps, 1),
        ("train.log_every", train.log_every, 1),
        ("train.checkpoint_every", train.checkpoint_every, 1),
        ("train.keep_checkpoints", train.keep_checkpoints, 1),
        ("data.workers", data.workers, 0),
        ("eval.pictures", eval_.pictures, 0),
    ):
        if value < low:
            raise ValueError(f"{name}={value}: must be at least {low}")
    if not 0 <= data.max_bad_share <= 1:
        raise ValueError(f"data.max_bad_share={data.max_bad_share}: must lie in [0, 1]")
    if eval_.engine not in ENGINES:
        raise ValueError(f"eval.engine={eval_.engine!r}: must be one of {ENGINES}")
    if not 0 < eval_.nms <= 1:
        raise ValueError(f"eval.nms={eval_.nms}: must lie in (0, 1]; 1 turns it off")
    sampler_settings(config)


def shown_report(source: Source) -> str:
    """The counters of a source that are not zero, as text."""
    return ", ".join(f"{name} {count}" for name, count in source.report().items() if count)


def prepare(config, *, resumes: bool = False) -> Run:
    """Builds a run at step 0 from a config.

    Args:
      resumes: a checkpoint will replace the state, so `config.model.pretrained` is not read.

    Raises:
      ValueError, FileNotFoundError: if the config, the data or the pretrained weights break a rule; names the field or
        file.
    """
    check_fields(config)
    mesh = parallel.make_mesh()
    parallel.check_batch_size("train.batch_size", config.train.batch_size, mesh)
    model, schedule, optimizer = build_model(config), build_schedule(config), make_optimizer(config)
    steps = [make_train_step(config, one, schedule, optimizer) for one in (model, model.clone(freeze_backbone=True))]
    source = make_source(config, "train", training=True)
    shard = (jax.process_index(), jax.process_count())
    data = train_iterator(config, source, shard=shard)
    everywhere = parallel.replicated(mesh)
    variables = initial_variables(model, config.seed) if resumes else starting_variables(config, model)
    state = jax.device_put(initial_state(variables, optimizer), everywhere)
    jitted = [
        jax.jit(
            step,
            in_shardings=(everywhere, parallel.batch_sharding(mesh)),
            out_shardings=everywhere,
            donate_argnums=0,
        )
        for step in steps
    ]
    return Run(config, mesh, source, data, learning_rate(config), state, *jitted)


def train(config, workdir: str) -> None:
    """Trains to `config.train.steps`, from the newest checkpoint of `workdir` if there is one.

    Writes checkpoints/, config.json, metrics.jsonl and tensorboard/ into `workdir`.

    Raises:
      ValueError, FileNotFoundError: before the first compile, if config, data or workdir break a rule; ValueError
        later, if too many records are unreadable.
      DivergedError: if a loss or gradient is not finite; nothing of that step is saved.
    """
    run = prepare(config, resumes=holds_checkpoint(workdir))
    check_workdir(config, workdir)
    print(f"data: {shown_report(run.source)}")
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    state, start = run.state, checkpoints.latest or 0
    if start < config.train.steps:
        claim_workdir(config, workdir)
    if start:
        state = checkpoints.restore(jax.tree.map(_abstract, state), run.data)
        print(f"resuming at step {start} of {config.train.steps}")
    writer = MetricsWriter(workdir, start)
    with contextlib.closing(checkpoints), contextlib.closing(writer), contextlib.closing(run.data):
        _steps(run, state, start, checkpoints, writer)


def _steps(run: Run, state: TrainState, start: int, checkpoints: Checkpoints, writer: MetricsWriter) -> None:
    options, total = run.config.train, run.config.train.steps
    log = StepLog(run, start, writer)
    with tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, mininterval=1.0) as bar:
        for step in range(start + 1, total + 1):
            batch = run.read()
            log.bad.add(batch["bad_index"])
            state, metrics = run.step_at(step)(state, parallel.put_batch(batch, run.mesh))
            # The step before this one is read while this one computes: the device never waits for the host.
            log.push(step, metrics, batch["annotation_id"])
            bar.update()
            bar.set_postfix_str(log.line, refresh=False)
            if step % options.checkpoint_every == 0 or step == total:
                log.flush()
                began = time.monotonic()
                checkpoints.save(step, state, run.data)
                log.exclude(time.monotonic() - began)


class StepLog:
    """Reads metrics one step late, stops on a figure that is not finite, and writes a log line now and then."""

    def __init__(self, run: Run, start: int, writer: MetricsWriter):
        self.bad = BadRecords(run.source, run.config.data.max_bad_share)
        self.line = ""
        self._run, self._writer = run, writer
        self._pending: tuple[int, dict, np.ndarray] | None = None
        self._first, self._since = start + 1, (start, time.monotonic())

    def exclude(self, seconds: float) -> None:
        """Leaves a pause, such as a save, out of the examples a second."""
        self._since = (self._since[0], self._since[1] + seconds)

    def push(self, step: int, metrics: dict[str, jax.Array], annotation_ids: np.ndarray) -> None:
        """Takes the metrics of `step`, still on the device, and handles those of the step before."""
        self.flush()
        self._pending = step, metrics, annotation_ids

    def flush(self) -> None:
        """Handles what is pending.

        Raises:
          DivergedError: if one of its figures is NaN or infinite.
        """
        if self._pending is None:
            return
        (step, metrics, ids), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in (*LOSS_TERMS, "loss", "grad_norm"):
            if not np.isfinite(values[name]):
                raise DivergedError(f"step {step}: {name} is {values[name]}; annotation ids {ids.tolist()}")
        config, now = self._run.config, time.monotonic()
        if step % config.train.log_every == 0 or step == config.train.steps:
            rate = (step - self._since[0]) * config.train.batch_size / (now - self._since[1])
            self._since = (step, now)
            values |= {
                "learning_rate": float(self._run.rate(step - 1)),
                "examples_per_second": round(rate, 2),
                "bad_records": len(self.bad),
            }
            self._writer.write(step, values)
            self.line = f"loss {values['loss']:.5f}, {rate:.0f} examples/s"
        elif step == self._first:
            self._since = (step, now)  # what came before was compilation


def dry_run(config, workdir: str) -> None:
    """Checks config, data and workdir, runs a few batches, prints what the run will need, and stops.

    Nothing is written. Prints parameters, memory of the compiled step, examples a second (reading included) and
    total time.

    Raises:
      what `train` raises before its first step, and what `evaluate` would raise about the data.
    """
    run = prepare(config, resumes=holds_checkpoint(workdir))
    check_workdir(config, workdir)
    print(f"train data:  {shown_report(run.source)}")
    print(f"val data:    {shown_report(make_source(config, 'val', training=False))}")
    with contextlib.closing(run.data):
        batch = parallel.put_batch(run.read(), run.mesh)
        began = time.monotonic()
        compiled = run.step.lower(run.state, batch).compile()
        compile_seconds = time.monotonic() - began
        state, seconds = run.state, []
        for _ in range(1 + DRY_RUN_STEPS):
            began = time.monotonic()
            state, metrics = jax.block_until_ready(compiled(state, batch))
            batch = parallel.put_batch(run.read(), run.mesh)
            seconds.append(time.monotonic() - began)
    step_seconds = float(np.median(seconds[1:]))
    total_hours = (compile_seconds + config.train.steps * step_seconds) / 3600
    memory = compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(f"devices:     {run.mesh.size} x {jax.devices()[0].device_kind}")
    print(f"parameters:  {count_parameters(state.params) / 1e6:.2f} M")
    print(f"memory:      {size / 2**20:.0f} MiB a device: arguments and temporaries of the compiled step")
    print(f"loss:        {float(metrics['loss']):.5f} after {1 + DRY_RUN_STEPS} steps")
    print(f"compilation: {compile_seconds:.0f} s")
    print(f"speed:       {config.train.batch_size / step_seconds:.1f} examples/s, {step_seconds * 1e3:.0f} ms a step")
    print(f"whole run:   {config.train.steps} steps, {total_hours:.2f} h")


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
