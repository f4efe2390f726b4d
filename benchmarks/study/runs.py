"""The runs of a study: trained, read and timed once each, and kept in the tables of its folder."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from benchmarks import report
from benchmarks.sampling import LATENCY_PERSONS, Sampling, measure_costs, plan, sampler_of
from benchmarks.study.gains import MATCHES_FILE, Matches, match, read_matches, write_matches
from benchmarks.study.tables import (
    GAINS_FILE,
    JOINTS_FILE,
    LATENCY_FILE,
    RUNS_FILE,
    Reading,
    Row,
    read_table,
    run_of,
    write_table,
)
from benchmarks.study.variants import VARIANTS, Variant
from dpose_jax.data.datasets import SPLITS, make_source
from dpose_jax.data.loader import eval_batches
from dpose_jax.data.sample import Source
from dpose_jax.evaluation.evaluator import restore
from dpose_jax.evaluation.metrics import PCK_THRESHOLDS
from dpose_jax.evaluation.oks import pck
from dpose_jax.evaluation.predict_split import Predictions, predict_split
from dpose_jax.evaluation.report import match_by_index, needs_annotated_boxes, summarise
from dpose_jax.evaluation.results import without_boxes
from dpose_jax.evaluation.results_check import check_inputs
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.initialise import initial_variables
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import sharding
from dpose_jax.training.loop import prepare, train
from dpose_jax.workdir.files import read_bytes, read_json, write_json
from dpose_jax.workdir.starts import training_device

REFINES = ("dark", "none")
SEED = "{seed}"  # in the names of annotation files: a run of seed S reads its own
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
            make_readers(self.recipe_of(name), VARIANTS[name], self.steps, self.noise_time)
        path, theirs, ours = self._identities(names)
        different = [name for name in ours if theirs.get(name, ours[name]) != ours[name]]
        if different:
            problem = ", ".join(f"{name}={theirs[name]} there and {ours[name]} here" for name in different)
            mend = "choose another --out, or delete the folder"
            raise ValueError(f"{path}: is of another recipe or other flags: {problem}; {mend}")

    def begin(self, names: Sequence[str], seeds: Sequence[int]) -> None:
        """Checks that there are data to train and to read on, and notes in study.json what the runs are of."""
        recipes = [self.recipe_of(names[0], seed) for seed in (0, *seeds)]  # everything is timed on the data of seed 0
        for recipe in {tuple(map(one.data.annotations, SPLITS)): one for one in recipes}.values():
            make_source(recipe, "train", training=True)
            make_source(recipe, recipe.eval.split, training=False)
        done = {run_of(row) for row in self.table(RUNS_FILE)}
        for place, name in enumerate(names):
            first = VARIANTS[name].after
            if first and first not in names[:place] and not done.issuperset((first, seed) for seed in seeds):
                raise ValueError(f"--arms={name}: starts from {first}, which must be before it in --arms, or finished")
        path, theirs, ours = self._identities(names)
        write_json(path, theirs | ours)

    def recipe_of(self, name: str, seed: int = 0, train_steps: int | None = None) -> Recipe:
        """The recipe of a run: with the fields of its variant, its seed, and its training steps if they differ.

        `{seed}` in the name of an annotation file becomes the seed.
        """
        variant = VARIANTS[name]
        steps = train_steps or round(variant.share * self.recipe.train.steps)
        files = {f"data.{split}_annotations": self.recipe.data.annotations(split) for split in SPLITS}
        files = {field: path.replace(SEED, str(seed)) for field, path in files.items() if SEED in path}
        start = {"model.pretrained": self.workdir(variant.after, seed)} if variant.after else {}
        return self.recipe.override({**variant.fields, **files, **start, "seed": seed, "train.steps": steps})

    def workdir(self, name: str, seed: int) -> str:
        """The folder of a run."""
        return os.path.join(self.folder, name, f"seed_{seed}")

    def length(self, name: str) -> int:
        """Training steps of a run: its share of the study's, or those that fit in the time of another variant's.

        That time includes the HRNet which the other starts from. What is missing is timed.
        """
        variant, whole = VARIANTS[name], self.recipe.train.steps
        if variant.same_time is None:
            return self.recipe_of(name).train.steps
        other = VARIANTS[variant.same_time]
        return round(whole * (other.share * self.pace(name, variant.same_time) + (other.after is not None)))

    def table(self, name: str) -> list[Row]:
        """The rows of one of the tables."""
        return read_table(os.path.join(self.folder, name))

    def finish(self, name: str, seed: int) -> None:
        """Trains and reads a run, from its newest checkpoint if there is one, and adds it to the tables."""
        variant, workdir, count = VARIANTS[name], self.workdir(name, seed), self.length(name)
        recipe = self.recipe_of(name, seed, count)
        train(recipe, workdir)
        variables = restore(recipe, workdir).variables
        source = make_source(recipe, recipe.eval.split, training=False)
        readers = [jax.jit(each) for each in make_readers(recipe, variant, self.steps, self.noise_time)]

        def read(*inputs):
            return {reading: its for reader in readers for reading, its in reader(variables, *inputs).items()}

        persons = predict_split(recipe, source, read)
        found = {reading: persons.predictions(*its) for reading, its in persons.outputs.items()}
        epochs = count * recipe.train.batch_size / len(make_source(recipe, "train", training=True))
        facts = {"train_steps": count, "epochs": epochs, "training_device": training_device(workdir) or "unknown"}
        facts |= {"evaluation_device": jax.devices()[0].device_kind}
        metrics, joints, matches = score(recipe, source, found)
        write_matches(os.path.join(workdir, MATCHES_FILE), matches)
        run = {"variant": name, "seed": seed}
        self._add(JOINTS_FILE, run, [reading._asdict() | row for reading, its in joints.items() for row in its])
        self._add(RUNS_FILE, run, [reading._asdict() | facts | its for reading, its in metrics.items()])

    def matches(self, runs: Iterable[tuple[str, int]]) -> dict[tuple[str, int], dict[Reading, Matches]]:
        """Persons beside what was found, by run and reading, of those `runs` that kept them; the others are named."""
        kept = {}
        for name, seed in runs:
            file = os.path.join(self.workdir(name, seed), MATCHES_FILE)
            if os.path.exists(file):
                kept[name, seed] = read_matches(file)
            else:
                print(
                    f"{file}: not found, {GAINS_FILE} lacks this run; delete its rows of {RUNS_FILE} to read it again"
                )
        return kept

    def curves(self, runs: Iterable[tuple[str, int]]) -> dict[str, list[np.ndarray]]:
        """By variant, for each of its `runs` that evaluated while it trained, (N, 2): time and AP of an evaluation.

        The time is in steps of the plain HRNet that the variant is compared with, and counts one that it starts from.
        """
        found: dict[str, list[np.ndarray]] = {}
        for name, seed in runs:
            file = os.path.join(self.workdir(name, seed), "metrics.jsonl")
            lines = read_bytes(file).splitlines() if os.path.exists(file) else []
            points = [(line["step"], line["AP"]) for line in map(json.loads, lines) if "AP" in line]
            timed = self._timed(name, f"train_step of {VARIANTS[name].plain}")
            if points:
                first = self.recipe.train.steps if VARIANTS[name].after else 0
                each = np.array(points) / [timed[0]["times"] if timed else 1.0, 1.0]
                found.setdefault(name, []).append(each + [first, 0])
        return found

    def time(self, name: str) -> None:
        """Times a training step beside that of its plain HRNet, and every reading for one person, unless that is kept.

        The weights are random.
        """
        plain = VARIANTS[name].plain
        if VARIANTS[name].fields != VARIANTS[plain].fields:
            self.pace(name, plain)
        if self._timed(name, "coarse"):
            return
        recipe = self.recipe_of(name)
        samplings = samplings_of(recipe, VARIANTS[name], self.steps, self.noise_time)
        source = make_source(recipe, recipe.eval.split, training=False)
        crops = next(iter(eval_batches(recipe, source, LATENCY_PERSONS)))["image"][:, None]
        variables = jax.device_put(initial_variables(build_model(recipe), 0))
        figures, _ = measure_costs(recipe, variables, samplings, crops, self.seconds)
        ms = {(one.update, one.steps): its["ms"] for one, its in figures.items()}
        rows = [{"timed": update, "K": k, "ms": one, "times": one / ms["coarse", 0]} for (update, k), one in ms.items()]
        self._add_times(name, rows)

    def pace(self, name: str, other: str) -> float:
        """How many training steps of a variant fit in the time of one of another: timed in turn once, and kept."""
        if kept := self._timed(name, f"train_step of {other}"):
            return kept[0]["times"]
        seconds = 10 * self.seconds
        timed = report.measure({each: _stepper(self.recipe_of(each)) for each in (name, other)}, seconds=seconds)
        own, theirs = (1e3 * timed[each].median for each in (name, other))
        rows: list[Row] = [{"timed": "train_step", "K": None, "ms": own, "times": 1.0}]
        self._add_times(name, [*rows, {"timed": f"train_step of {other}", "ms": theirs, "times": theirs / own}])
        return theirs / own

    def _identities(self, names: Sequence[str]) -> tuple[str, Row, Row]:
        """study.json, its content, and ours: what decides the figures, the recipe, variants' fields and flags."""
        path, ours = os.path.join(self.folder, "study.json"), {"K": self.steps, "noise_time": self.noise_time}
        ours |= {f"recipe.{name}": value for name, value in self.recipe.flatten().items() if name != "seed"}
        ours |= {f"variants.{name}": VARIANTS[name].fields for name in names}
        late = {name: VARIANTS[name] for name in names if VARIANTS[name].after}
        ours |= {f"variants.{name}.start": [one.after, one.share] for name, one in late.items()}
        return path, read_json(path) if os.path.exists(path) else {}, json.loads(json.dumps(ours))

    def _timed(self, name: str, timed: str) -> list[Row]:
        return [row for row in self.table(LATENCY_FILE) if (row["variant"], row["timed"]) == (name, timed)]

    def _add(self, table: str, key: Row, rows: Sequence[Row]) -> None:
        """Adds rows with the columns `key` to a table, in place of the run's; other commands may write to it too."""
        kept = [row for row in self.table(table) if "seed" not in key or not row.items() >= key.items()]
        study = {"study": os.path.basename(os.path.abspath(self.folder))}
        write_table(os.path.join(self.folder, table), [*kept, *(study | key | row for row in rows)])
        jax.clear_caches()  # no program serves two variants

    def _add_times(self, name: str, rows: Sequence[Row]) -> None:
        environment = report.environment()
        machine = {fact: environment[fact] for fact in MACHINE} | {"jax": environment["versions"]["jax"]}
        self._add(LATENCY_FILE, {"variant": name}, [row | machine for row in rows])


def _stepper(recipe: Recipe) -> Callable:
    """A call that takes the last training step of a run again and again, always with the same batch."""
    run = prepare(recipe, resumes=True)  # from random weights: those that it starts from need not be there
    with contextlib.closing(run.data):
        state, batch = run.state, sharding.put_batch(run.next_batch(), run.mesh)

    def step():
        nonlocal state
        state, metrics = run.train_step(recipe.train.steps, state, batch)
        return metrics["loss"]

    return step


def samplings_of(recipe: Recipe, variant: Variant, steps: Sequence[int], noise_time: int) -> list[Sampling]:
    """The ways in which a variant is sampled: the coarse branch, then each of its updates."""
    some = [k for k in steps if variant.most_steps is None or k <= variant.most_steps]
    return plan(recipe, [0, *some], variant.updates, noise_time)


def make_readers(recipe: Recipe, variant: Variant, steps: Sequence[int], noise_time: int) -> list[Callable]:
    """Pure `(variables, crops, person_ids) -> {Reading: (keypoints (B, J, 2), scores (B, J))}`, in crop pixels."""
    every = samplings_of(recipe, variant, steps, noise_time)
    groups = [list(its) for _, its in itertools.groupby(every, key=lambda one: one.update)]
    return [functools.partial(_read, sampler_of(recipe, its), its) for its in groups]


def _read(sampler: PoseSampler, samplings: Sequence[Sampling], variables, crops, person_ids) -> dict[Reading, tuple]:
    codecs = [dataclasses.replace(sampler.model.codec, refine=refine) for refine in REFINES]
    heatmaps, found = sampler.heatmaps(variables, crops, person_ids), {}
    for one in samplings:
        maps = heatmaps[f"steps_{one.settings.steps}" if one.settings else "coarse"]
        mean = maps[:, : one.hypotheses].mean(axis=1) if sampler.hypotheses > 1 else maps
        found |= {Reading(one.update, one.steps, codec.refine): codec.decode(mean) for codec in codecs}
    return found


def score(
    recipe: Recipe, source: Source, found: dict[Reading, Predictions]
) -> tuple[dict[Reading, Row], dict[Reading, list[Row]], dict[Reading, Matches]]:
    """By reading its metrics, PCK by visibility among them; rows with AP and PCK of every joint; DARK's matches."""
    scores, results = summarise(source, found, recipe.joints, recipe)
    metrics, joints, truth = {}, {}, source.ground_truth()
    checked = ((reading, check_inputs(truth, without_boxes(its), recipe.joints)) for reading, its in results.items())
    matches = {reading: match(inputs) for reading, inputs in checked if reading.refine == "dark"}
    for reading, predictions in found.items():
        predicted, true, lengths = match_by_index(source, predictions, truth)
        metrics[reading] = scores["results"][reading] | {
            f"PCK@{threshold} {name}": pck(predicted, true[..., :2], true[..., 2] == value, lengths, threshold)[0]
            for threshold in PCK_THRESHOLDS
            for value, name in ((1, "occluded"), (2, "visible"))
        }
        by_joint = scores["joints"][reading]
        names = next(iter(by_joint.values()))
        joints[reading] = [{"metric": name} | {joint: its[name] for joint, its in by_joint.items()} for name in names]
    return metrics, joints, matches
