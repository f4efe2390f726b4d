"""The runs of a study: trained, read and timed once each, and kept in the tables of its folder."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import report
from benchmarks.sampling import LATENCY_PERSONS, measure_costs
from benchmarks.study import readings
from benchmarks.study.tables import JOINTS_FILE, LATENCY_FILE, RUNS_FILE, Row, RunKey, read_table, write_table
from benchmarks.study.variants import VARIANTS
from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches
from dpose_jax.evaluation.evaluator import restore
from dpose_jax.evaluation.predict_split import predict_split
from dpose_jax.evaluation.report import needs_annotated_boxes
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.initialise import initial_variables
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import sharding
from dpose_jax.training.loop import prepare, train
from dpose_jax.workdir.checkpoints import training_device
from dpose_jax.workdir.files import read_json, write_json

MACHINE = ("cpu", "cores", "device", "load", "python", "xla_flags")


@dataclasses.dataclass(frozen=True)
class Study:
    """A folder of runs that share a recipe, and how they are read."""

    folder: str  # for the tables, study.json and the runs, each in VARIANT/seed_S
    recipe: Recipe
    steps: tuple[int, ...]  # K of every update
    noise_time: int  # t_start of the restarts
    seconds: float = 1.0  # to spend on timing each way of sampling

    def check(self, names: Sequence[str]) -> None:
        """Raises ValueError, naming it, for a variant, field or folder that would only fail when its turn comes."""
        needs_annotated_boxes(self.recipe, "the study")
        for name in names:
            if name not in VARIANTS:
                raise ValueError(f"--arms={name}: must be among {', '.join(VARIANTS)}")
            readings.make_readers(self.recipe_of(name), VARIANTS[name], self.steps, self.noise_time)
        theirs, ours = self._stored_identity(), self._identity(names)
        different = [name for name in ours if theirs.get(name, ours[name]) != ours[name]]
        if different:
            said = ", ".join(f"{name}={theirs[name]} there and {ours[name]} here" for name in different)
            problem = f"{self._path('study.json')}: is of another recipe or other flags: {said}"
            raise ValueError(f"{problem}; choose another --out, or delete the folder")

    def begin(self, names: Sequence[str]) -> None:
        """Checks that there are data to train and to read on, and notes in study.json what the runs are of."""
        make_source(self.recipe, "train", training=True)
        make_source(self.recipe, self.recipe.eval.split, training=False)
        write_json(self._path("study.json"), self._stored_identity() | self._identity(names))

    def recipe_of(self, name: str, seed: int = 0, train_steps: int | None = None) -> Recipe:
        """The recipe of a run: with the fields of its variant, its seed, and its training steps if they differ."""
        steps = train_steps or self.recipe.train.steps
        return self.recipe.override({**VARIANTS[name].fields, "seed": seed, "train.steps": steps})

    def table(self, name: str) -> list[Row]:
        """The rows of one of the tables."""
        return read_table(self._path(name))

    def finish(self, key: RunKey) -> None:
        """Trains and reads a run, from its newest checkpoint if there is one, and adds it to the tables."""
        variant, workdir = VARIANTS[key.variant], self._path(key.variant, f"seed_{key.seed}")
        count = round(self.recipe.train.steps * (self.pace(key.variant) if variant.same_time else 1))
        recipe = self.recipe_of(key.variant, key.seed, count)
        train(recipe, workdir)
        variables = restore(recipe, workdir).variables
        source = make_source(recipe, recipe.eval.split, training=False)
        readers = [jax.jit(each) for each in readings.make_readers(recipe, variant, self.steps, self.noise_time)]

        def read(*inputs):
            return {name: its for reader in readers for name, its in reader(variables, *inputs).items()}

        persons = predict_split(recipe, source, read)
        found = {reading: persons.predictions(*its) for reading, its in persons.outputs.items()}
        epochs = count * recipe.train.batch_size / len(make_source(recipe, "train", training=True))
        facts = {"train_steps": count, "epochs": epochs, "training_device": training_device(workdir) or "unknown"}
        facts |= {"evaluation_device": jax.devices()[0].device_kind}
        metrics, joints = readings.score(recipe, source, found)
        rows = [reading._asdict() | row for reading, its in joints.items() for row in its]
        self._add(JOINTS_FILE, key._asdict(), rows)
        self._add(RUNS_FILE, key._asdict(), [reading._asdict() | facts | its for reading, its in metrics.items()])

    def time(self, name: str) -> None:
        """Times every reading of a variant for one person, with random weights, unless that is kept."""
        if self._timed(name, "coarse"):
            return
        recipe = self.recipe_of(name)
        samplings = readings.samplings_of(recipe, VARIANTS[name], self.steps, self.noise_time)
        source = make_source(recipe, recipe.eval.split, training=False)
        crops = next(iter(eval_batches(recipe, source, LATENCY_PERSONS)))["image"][:, None]
        variables = jax.device_put(initial_variables(build_model(recipe), 0))
        figures, _ = measure_costs(recipe, variables, samplings, crops, self.seconds)
        ms = {(one.update, one.steps): its["ms"] for one, its in figures.items()}
        rows = [{"timed": update, "K": k, "ms": one, "times": one / ms["coarse", 0]} for (update, k), one in ms.items()]
        self._add_times(name, rows)

    def pace(self, name: str) -> float:
        """How many training steps of a variant fit in the time of one of the recipe: timed in turn once, and kept."""
        if kept := self._timed(name, "train_step of recipe"):
            return kept[0]["times"]
        timed = report.measure({each: _stepper(self.recipe_of(each)) for each in (name, "recipe")}, seconds=10)
        own, recipe = (1e3 * timed[each].median for each in (name, "recipe"))
        rows: list[Row] = [{"timed": "train_step", "K": None, "ms": own, "times": 1.0}]
        self._add_times(name, [*rows, {"timed": "train_step of recipe", "ms": recipe, "times": recipe / own}])
        return recipe / own

    def _path(self, *names: str) -> str:
        return os.path.join(self.folder, *names)

    def _identity(self, names: Sequence[str]) -> dict[str, Any]:
        """What decides the figures of the runs, as JSON: the recipe, the variants' fields and the flags."""
        recipe = {f"recipe.{name}": value for name, value in self.recipe.flatten().items() if name != "seed"}
        variants = {f"variants.{name}": VARIANTS[name].fields for name in names}
        return json.loads(json.dumps({"K": self.steps, "noise_time": self.noise_time} | recipe | variants))

    def _stored_identity(self) -> dict[str, Any]:
        path = self._path("study.json")
        return read_json(path) if os.path.exists(path) else {}

    def _timed(self, name: str, timed: str) -> list[Row]:
        return [row for row in self.table(LATENCY_FILE) if (row["variant"], row["timed"]) == (name, timed)]

    def _add(self, table: str, key: Row, rows: Sequence[Row]) -> None:
        """Adds rows with the columns `key` to a table, in place of the run's; other commands may write to it too."""
        kept = [row for row in self.table(table) if "seed" not in key or not row.items() >= key.items()]
        study = {"study": os.path.basename(os.path.abspath(self.folder))}
        write_table(self._path(table), [*kept, *(study | key | row for row in rows)])
        jax.clear_caches()  # no program serves two variants

    def _add_times(self, name: str, rows: Sequence[Row]) -> None:
        environment = report.environment()
        machine = {fact: environment[fact] for fact in MACHINE} | {"jax": environment["versions"]["jax"]}
        self._add(LATENCY_FILE, {"variant": name}, [row | machine for row in rows])


def _stepper(recipe: Recipe) -> Callable:
    """A call that takes the last training step of a run again and again, always with the same batch."""
    run = prepare(recipe)
    with contextlib.closing(run.data):
        batch = sharding.put_batch(run.next_batch(), run.mesh)
    state = run.state

    def step():
        nonlocal state
        state, metrics = run.train_step(recipe.train.steps, state, batch)
        return metrics["loss"]

    return step
