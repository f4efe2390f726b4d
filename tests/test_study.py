"""The study, on a miniature: its variants, what is read from them, its tables, and how it resumes."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import command

from benchmarks.report import Timing
from benchmarks.study import plot, runs
from benchmarks.study.gains import MEASURES, measure
from benchmarks.study.runs import Study, make_readers, samplings_of, score
from benchmarks.study.tables import Reading, read_table, summarise, write_table
from benchmarks.study.variants import VARIANTS
from dpose_jax.data.datasets import make_source
from dpose_jax.evaluation.evaluator import evaluate, restore
from dpose_jax.evaluation.predict_split import predict_split
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.workdir.files import read_json, write_json

REFINES = ("dark", "none")
SAME = (("direct", "eval.flip", True), ("unflipped", "eval.flip", False), ("unmirrored", "sampler.mirrored", False))


@pytest.fixture
def study(miniature, tmp_path):
    return Study(str(tmp_path), miniature(input_size=(128, 96)), (1, 2), 300)


def test_every_variant_is_a_valid_recipe(study):
    for name, variant in VARIANTS.items():
        recipe = study.recipe_of(name, 3, 7)
        assert (recipe.seed, recipe.train.steps) == (3, 7), name
        build_model(recipe)
        found = dict.fromkeys(one.update for one in samplings_of(recipe, variant, [1, 2], 300))
        assert list(found) == ["coarse", *variant.updates] if variant.most_steps != 0 else ["coarse", "unflipped"], name
    refiner = samplings_of(study.recipe, VARIANTS["one_pass"], [1, 2], 300)
    assert [one.steps for one in refiner if one.update == "direct"] == [1]


def test_readings_are_those_of_the_evaluation(trained, tmp_path):
    """By DARK; and without it the peak's own pixel decides."""
    recipe, workdir = trained
    source = make_source(recipe, "val", training=False)
    variables = restore(recipe, workdir).variables
    readers = make_readers(recipe, VARIANTS["written"], [1, 2], 300)

    @jax.jit
    def read(crops, ids):
        return {reading: its for reader in readers for reading, its in reader(variables, crops, ids).items()}

    persons = predict_split(recipe, source, read)
    found = {name: persons.predictions(*its) for name, its in persons.outputs.items()}
    metrics, joints, matches = score(recipe, source, found)
    assert set(matches) == {reading for reading in metrics if reading.refine == "dark"}
    for reading, its in matches.items():
        whole = dict(zip(MEASURES, measure(its, np.ones(len(its.images))), strict=True))
        for name in ("AP", "AR"):
            assert whole[name] == pytest.approx(metrics[reading][name], abs=1e-12), (reading, name)
    updates = ("direct", "unmirrored", "unflipped", "ddim", "restarts")
    expected = {Reading(update, k, refine) for update in updates for k in (1, 2) for refine in REFINES}
    expected |= {Reading(update, 0, refine) for update in ("coarse", "unflipped") for refine in REFINES}
    assert set(metrics) == expected
    for update, field, value in SAME:
        report = evaluate(recipe.override({field: value}), workdir, str(tmp_path / "report.json"))
        pairs = {Reading(update, k): f"steps_{k}" for k in (1, 2)}
        if update != "unmirrored":
            pairs[Reading("coarse" if update == "direct" else update, 0)] = "coarse"
        for mine, theirs in pairs.items():
            for metric, value in report["results"][theirs].items():
                assert metrics[mine][metric] == pytest.approx(value, abs=1e-3), (mine, metric)
            by_metric = {row["metric"]: row for row in joints[mine]}
            for joint, its in report["joints"][theirs].items():
                assert {name: by_metric[name][joint] for name in its} == pytest.approx(its, abs=1e-3), joint
    assert metrics[Reading("direct", 1)] != metrics[Reading("unflipped", 1)]
    assert metrics[Reading("direct", 1)] != metrics[Reading("unmirrored", 1)]
    assert metrics[Reading("coarse", 0)] != metrics[Reading("coarse", 0, "none")]


def test_curves_are_drawn_over_training_time(study, monkeypatch):
    """Steps times how long one takes beside HRNet's; AP of evaluations alone, the mean over the runs that have any."""
    for name, seed, aps in (("plain", 0, (0.25, 0.5)), ("unet", 0, (0.5, 0.75)), ("unet", 1, (0.75, 0.875))):
        path = Path(study.folder, name, f"seed_{seed}", "metrics.jsonl")
        path.parent.mkdir(parents=True)
        lines = [{"step": 5, "loss": 1.0}, *({"step": 10 * (i + 1), "AP": ap} for i, ap in enumerate(aps))]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    timed = {"study": "a", "variant": "unet", "timed": "train_step of plain", "K": None, "ms": 4.0, "times": 0.8}
    write_table(f"{study.folder}/latency.csv", [timed])
    found = study.curves([("plain", 0), ("unet", 0), ("unet", 1), ("one_pass", 0)])
    assert list(found) == ["plain", "unet"] and len(found["unet"]) == 2
    figures = []
    monkeypatch.setattr(plot, "write_figure", lambda path, figure: figures.append(figure))
    plot.write_curves("curves.png", found)
    lines = {line.get_label(): line.get_xydata() for line in figures[0].axes[0].lines}
    np.testing.assert_allclose(lines["HRNet"], [[10, 25], [20, 50]])
    np.testing.assert_allclose(lines["U-Net"], [[12.5, 62.5], [25, 81.25]])


def test_steps_in_the_same_time(study, monkeypatch):
    """The recipe's step over the variant's, timed once and kept."""
    monkeypatch.setattr(runs, "_stepper", lambda recipe: recipe.loss.diffusion)
    measured = []

    def measure(calls, **_):
        measured.append(calls)
        return {name: Timing({"plain_same_time": 2.0, "unet": 5.0}[name], 0.0, 9.0, 5) for name in calls}

    monkeypatch.setattr(runs.report, "measure", measure)
    assert study.pace("plain_same_time", "unet") == pytest.approx(2.5)
    assert measured == [{"plain_same_time": 0.0, "unet": 1.0}]
    assert study.pace("plain_same_time", "unet") == pytest.approx(2.5) and len(measured) == 1
    own, recipe = study.table("latency.csv")
    assert (own["timed"], own["ms"], recipe["ms"], recipe["times"]) == ("train_step", 2000, 5000, 2.5)
    assert {"cpu", "cores", "device", "load", "jax"} <= own.keys()


def test_a_denoiser_on_a_finished_hrnet(study, monkeypatch):
    """It starts from HRNet's run of its seed; an HRNet of its time trains as long as both together."""
    name, own, folder = "light_sub_late", "plain_sub_time_of_light_sub_late", Path(study.folder)
    study = dataclasses.replace(study, recipe=study.recipe.override({"train.steps": 300}))
    late = study.recipe_of(name, 3)
    assert (late.train.steps, late.model.pretrained) == (100, str(folder / "plain_sub" / "seed_3"))
    assert (late.optim.backbone_rate, late.loss.coarse, late.loss.diffusion) == (0, 0, 1)
    assert study.recipe_of("light_sub", 3).model.pretrained == study.recipe.model.pretrained
    monkeypatch.setattr(runs, "_stepper", lambda recipe: recipe.train.steps)
    paces = {own: 2.0, name: 1.0, "plain_sub_time_of_light_sub": 2.0, "light_sub": 3.0}
    monkeypatch.setattr(
        runs.report, "measure", lambda calls, **_: {each: Timing(paces[each], 0.0, 9.0, 5) for each in calls}
    )
    lengths = {each: study.length(each) for each in ("plain_sub", name, own, "plain_sub_time_of_light_sub")}
    assert lengths == {"plain_sub": 300, name: 100, own: 350, "plain_sub_time_of_light_sub": 450}
    write_table(
        f"{folder}/latency.csv", [{"study": "a", "variant": name, "timed": "train_step of plain_sub", "times": 2.0}]
    )
    path = folder / name / "seed_0" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"step": 100, "AP": 0.5}) + "\n")
    (points,) = study.curves([(name, 0)])[name]
    np.testing.assert_allclose(points, [[350, 0.5]])
    message = f"--arms={name}: starts from plain_sub, which must be before it in --arms, or finished"
    for names in ([name], [name, "plain_sub"]):
        with pytest.raises(ValueError, match=message):
            study.begin(names, [0])
    study.begin(["plain_sub", name], [0])
    write_table(f"{folder}/study.csv", [{"study": "a", "variant": "plain_sub", "seed": 0}])
    study.begin([name], [0])
    with pytest.raises(ValueError, match=message):
        study.begin([name], [0, 1])


def test_a_study_of_another_recipe_is_named(study):
    """Before anything is trained; variants that are new there are none of that."""
    names = ["plain", "unet"]
    study.check(names)
    study.begin(names, [0])
    study.check([*names, "written"])
    other = dataclasses.replace(study, recipe=study.recipe.override({"diffusion.own_share": 0.25, "seed": 7}))
    with pytest.raises(
        ValueError, match=r"study.json: is of another .*: recipe.diffusion.own_share=0.5 there and 0.25 here;"
    ):
        other.check(names)
    with pytest.raises(ValueError, match=r"study.json: .*: K=\[1, 2\] there and \[4\] here;"):
        dataclasses.replace(study, steps=(4,)).check(names)
    path = f"{study.folder}/study.json"
    write_json(path, read_json(path) | {"variants.plain": {"loss.diffusion": 0.5}})
    study.check(["unet"])
    with pytest.raises(ValueError, match=r"variants.plain={'loss.diffusion': 0.5} there and .*'loss.diffusion': 0.0} "):
        study.check(names)


def test_what_no_study_compares_is_named(study):
    with pytest.raises(ValueError, match="--arms=plane: must be among plain, "):
        study.check(["plane"])
    detections = dataclasses.replace(study, recipe=study.recipe.override({"eval.boxes": "detections"}))
    with pytest.raises(ValueError, match="eval.boxes='detections': the study compares"):
        detections.check(["plain"])


@dataclasses.dataclass(frozen=True)
class Finished:
    """A study of two variants: seed 0, then seeds 0 and 1 by the same command."""

    folder: Path
    arguments: list[str]
    first: list[dict]  # rows after seed 0, of which an older version had no `ddim`
    trained: tuple[int, int]  # when a checkpoint of seed 0 was written, by either
    printed: str

    def table(self, name: str) -> list[dict]:
        return read_table(str(self.folder / name))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """With what compiles fastest, neither SC-CA nor U-Net; on any machine two steps are cheap enough for gains.csv."""
    folder = tmp_path_factory.mktemp("study")
    arguments = ["study", "--config=tests/miniature.py", f"--out={folder}", "--steps=2", "--arms=plain_sub,light_sub"]
    arguments += [f"--config.model.{half}_attention=False" for half in ("spatial", "channel")]
    arguments += ["--config.model.decoder=light", "--seconds=0.1", "--most_times=1000"]
    arguments += [f"--config.train.{field}=2" for field in ("steps", "checkpoint_every", "evaluate_every")]
    done = command("benchmark.py", *arguments, "--seeds=0")
    assert done.returncode == 0, done.stderr
    first = [row for row in read_table(str(folder / "study.csv")) if row["update"] != "ddim"]
    write_table(str(folder / "study.csv"), first)
    weights = folder / "plain_sub" / "seed_0" / "checkpoints" / "2"
    before = weights.stat().st_mtime_ns
    done = command("benchmark.py", *arguments, "--seeds=0,1")
    assert done.returncode == 0, done.stderr
    return Finished(folder, arguments, first, (before, weights.stat().st_mtime_ns), done.stdout)


def test_a_study_resumes(finished):
    """What is finished is neither trained nor read again."""
    before, after = finished.trained
    assert before == after and "light_sub, seed 1:" in finished.printed
    rows = finished.table("study.csv")
    assert rows[: len(finished.first)] == finished.first
    assert list(dict.fromkeys((row["variant"], row["seed"]) for row in rows)) == [
        (variant, seed) for seed in (0, 1) for variant in ("plain_sub", "light_sub")
    ]


def test_a_study_reports_every_run(finished):
    rows, joints = finished.table("study.csv"), finished.table("joints.csv.gz")
    facts = {name: rows[-1][name] for name in ("train_steps", "epochs", "training_device", "evaluation_device")}
    epochs = pytest.approx(2 * 8 / 21, abs=1e-6)  # 21 persons on 8 images
    assert facts == {"train_steps": 2, "epochs": epochs, "training_device": "cpu", "evaluation_device": "cpu"}
    assert {row["metric"] for row in joints} == {"AP", "PCK@0.2", "PCK@0.1"} and "left_wrist" in joints[0]
    summaries = {(row["variant"], row["reading"]): row for row in summarise(rows, finished.table("latency.csv"))}
    assert all(row["seeds"] == (1 if reading.update == "ddim" else 2) for (_, reading), row in summaries.items())
    assert ("plain_sub", Reading("direct", 2)) not in summaries
    coarse, direct = (summaries["light_sub", reading] for reading in (Reading("coarse", 0), Reading("direct", 2)))
    assert coarse["times"] == 1 and direct["times"] == pytest.approx(direct["ms"] / coarse["ms"], abs=1e-3)
    (gain,) = finished.table("gains.csv")
    assert (gain["variant"], gain["control"], gain["seeds"]) == ("light_sub", "plain_sub", 2)
    assert gain["reading"].endswith("_2") and 0 < gain["persons"] < 21 and gain["AP ±"] >= 0
    assert "gains.csv lacks" not in finished.printed
    assert "U-Net refiner" in (finished.folder / "study.md").read_text()
    for name in ("study.png", "errors.png", "curves.png"):
        assert (finished.folder / name).stat().st_size > 10_000, name


def test_a_report_alone_trains_and_times_nothing(finished, tmp_path):
    folder = tmp_path / finished.folder.name
    shutil.copytree(finished.folder, folder)
    arguments = [each.replace(str(finished.folder), str(folder)) for each in finished.arguments]
    only = ["--seeds=0,1", "--arms=plain_sub,plain_sub_time_of_light_sub,light_sub,one_pass_light_sub", "--report_only"]
    report, identity = (folder / "study.md").read_text(), (folder / "study.json").read_text()
    (folder / "latency.csv").unlink()
    # As if three steps fit in the time of two.
    same_time = [row | {"train_steps": 3} for row in finished.first if row["variant"] == "plain_sub"]
    joints = [row for row in finished.table("joints.csv.gz") if (row["variant"], row["seed"]) == ("plain_sub", 0)]
    for name, its in (("study.csv", same_time), ("joints.csv.gz", joints)):
        others = [row | {"variant": "plain_sub_time_of_light_sub"} for row in its]
        write_table(str(folder / name), [*finished.table(name), *others])
    done = command("benchmark.py", *arguments, *only)
    assert done.returncode == 0, done.stderr
    again = (folder / "study.md").read_text()
    assert again.count("HRNet, sub-pixels, time of light, sub-pixels") == 4 and again != report
    assert (folder / "study.json").read_text() == identity
    missing = f"{folder / 'plain_sub_time_of_light_sub'}/seed_0/persons.npz"
    assert f"{missing}: not found, gains.csv lacks this run" in done.stdout
    others = "one_pass_light_sub", "latency.csv", "plain_sub_time_of_light_sub"
    assert not any((folder / name).exists() for name in others)
    for wrong, message in (
        (("--arms=one_pass", "--report_only"), "no run of --arms=one_pass is finished there"),
        (("--config.train.steps=3", "--seeds=0"), "study.json: is of another recipe"),
    ):
        done = command("benchmark.py", *arguments, *wrong)
        assert done.returncode == 1 and message in done.stderr, done.stderr
