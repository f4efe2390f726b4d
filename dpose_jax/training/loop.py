"""The training run: prepare and check everything, then step, log, save."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from dpose_jax import parallel
from dpose_jax.data.pipeline import make_source, train_iterator
from dpose_jax.data.records import Source
from dpose_jax.diffusion.sampler import sampler_settings
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import initial_variables
from dpose_jax.training.checkpoints import Checkpoints, check_workdir, claim_workdir
from dpose_jax.training.metrics import BadRecords, MetricsWriter
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
    step: Callable

    def read(self) -> dict[str, np.ndarray]:
        """The next host-local batch."""
        return next(self.data)


def prepare(config) -> Run:
    """Builds a run at step 0 from a config.

    Raises:
      ValueError, FileNotFoundError: if the config or the data breaks a rule; names the field or file.
    """
    mesh = parallel.make_mesh()
    parallel.check_batch_size("train.batch_size", config.train.batch_size, mesh)
    model, schedule, optimizer = build_model(config), build_schedule(config), make_optimizer(config)
    sampler_settings(config)
    step = make_train_step(config, model, schedule, optimizer)
    source = make_source(config, "train", training=True)
    shard = (jax.process_index(), jax.process_count())
    data = train_iterator(config, source, shard=shard)
    everywhere = parallel.replicated(mesh)
    state = jax.device_put(initial_state(initial_variables(model, config.seed), optimizer), everywhere)
    shardings = {"in_shardings": (everywhere, parallel.batch_sharding(mesh)), "out_shardings": everywhere}
    jitted = jax.jit(step, donate_argnums=0, **shardings)
    return Run(config, mesh, source, data, learning_rate(config), state, jitted)


def train(config, workdir: str) -> None:
    """Trains to `config.train.steps`, from the newest checkpoint of `workdir` if there is one.

    Writes checkpoints/, config.json, metrics.jsonl and tensorboard/ into `workdir`.

    Raises:
      ValueError, FileNotFoundError: before the first compile, if config, data or workdir break a rule; ValueError
        later, if too many records are unreadable.
      DivergedError: if a loss or gradient is not finite; nothing of that step is saved.
    """
    run = prepare(config)
    claim_workdir(config, workdir)
    print(f"data: {run.source.report()}")
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    state, start = run.state, checkpoints.latest or 0
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
            state, metrics = run.step(state, parallel.put_batch(batch, run.mesh))
            # The step before this one is read while this one computes: the device never waits for the host.
            log.push(step, metrics, batch["annotation_id"])
            bar.update()
            bar.set_postfix_str(log.line, refresh=False)
            if step % options.checkpoint_every == 0 or step == total:
                log.flush()
                checkpoints.save(step, state, run.data)


class StepLog:
    """Reads metrics one step late, stops on a figure that is not finite, and writes a log line now and then."""

    def __init__(self, run: Run, start: int, writer: MetricsWriter):
        self.bad = BadRecords(run.source, run.config.data.max_bad_share)
        self.line = ""
        self._run, self._writer = run, writer
        self._pending: tuple[int, dict, np.ndarray] | None = None
        self._since = (start, time.monotonic())

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
        config = self._run.config
        if step % config.train.log_every == 0 or step == config.train.steps:
            now = time.monotonic()
            rate = (step - self._since[0]) * config.train.batch_size / (now - self._since[1])
            self._since = (step, now)
            values |= {
                "learning_rate": float(self._run.rate(step - 1)),
                "examples_per_second": round(rate, 2),
                "bad_records": len(self.bad),
            }
            self._writer.write(step, values)
            self.line = f"loss {values['loss']:.5f}, {rate:.0f} examples/s"


def dry_run(config, workdir: str) -> None:
    """Checks config, data and workdir, runs one batch a few times, prints what the run will need, and stops.

    Nothing is written. Prints parameters, memory of the compiled step, examples a second and total time.

    Raises:
      what `train` raises before its first step.
    """
    run = prepare(config)
    check_workdir(config, workdir)
    batch = run.read()
    batch_on_device = parallel.put_batch(batch, run.mesh)
    began = time.monotonic()
    compiled = run.step.lower(run.state, batch_on_device).compile()
    compile_seconds = time.monotonic() - began
    state, seconds = run.state, []
    for _ in range(1 + DRY_RUN_STEPS):
        began = time.monotonic()
        state, metrics = jax.block_until_ready(compiled(state, batch_on_device))
        seconds.append(time.monotonic() - began)
    run.data.close()
    step_seconds = float(np.median(seconds[1:]))
    memory = compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(f"data:        {run.source.report()}")
    print(f"devices:     {run.mesh.size} x {jax.devices()[0].device_kind}")
    print(f"parameters:  {count_parameters(state.params) / 1e6:.2f} M")
    print(f"memory:      {size / 2**20:.0f} MiB a device: arguments and temporaries of the compiled step")
    print(f"first loss:  {float(metrics['loss']):.5f}")
    print(f"compilation: {compile_seconds:.0f} s")
    print(f"speed:       {config.train.batch_size / step_seconds:.1f} examples/s, {step_seconds * 1e3:.0f} ms a step")
    print(f"whole run:   {config.train.steps} steps, {config.train.steps * step_seconds / 3600:.2f} h")


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
