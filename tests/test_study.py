"""The study, on a miniature: its variants, what is read from them, its tables, and how it resumes."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import command

from benchmarks.report import Timing
from benchmarks.study import plot, runs
from benchmarks.study.gains import MEASURES, measure
from benchmarks.study.runs import Study, make_readers, samplings_of, score
from benchmarks.study.tables import (
    METRICS,
    Estimate,
    Reading,
    in_points,
    read_table,
    reading_of,
    summarise,
    write_table,
)
from benchmarks.study.variants import VARIANTS, controls
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


def test_tables_keep_what_was_written(tmp_path):
    """Six significant digits; None, whole numbers and text come back as they were."""
    rows = [
        {"study": "a", "variant": "plain", "seed": 0, **Reading("coarse", 0)._asdict(), "AP": 0.123456789, "APm": None},
        {
            "study": "a",
            "variant": "recipe",
            "seed": 1,
            **Reading("direct", 2, "none")._asdict(),
            "AP": 1 / 3,
            "AR": 1e-7,
        },
    ]
    for name in ("study.csv", "joints.csv.gz"):
        path = str(tmp_path / name)
        assert read_table(path) == []
        write_table(path, rows)
        first, second = read_table(path)
        assert first == rows[0] | {"AP": 0.123457, "AR": None}
        assert second == rows[1] | {"AP": 0.333333, "APm": None}
        assert reading_of(second) == Reading("direct", 2, "none")
        content = (tmp_path / name).read_bytes()
        write_table(path, read_table(path))
        assert (tmp_path / name).read_bytes() == content
    assert str(Reading("direct", 2, "none")) == "direct_2 without DARK" and str(Reading("coarse", 0)) == "coarse"


def row_of(variant, seed, reading, ap, device="cpu", **others):
    values = dict.fromkeys(METRICS, 0.5) | {"AP": ap, "training_device": device} | others
    return {"study": "a", "variant": variant, "seed": seed, **reading._asdict(), **values}


def test_errors_are_shown_by_visibility_and_joint(monkeypatch):
    """The mean over seeds of what PCK leaves, with its standard error; a joint without any is left blank."""

    def rows(variant, seed, reading, pck, wrist):
        names = (f"{metric}{end}" for metric in ("PCK@0.2", "PCK@0.1") for end in ("", " occluded", " visible"))
        run = {"study": "a", "variant": variant, "seed": seed, **reading._asdict()}
        wide, near = run | {"metric": "PCK@0.2"}, run | {"metric": "PCK@0.1"}
        joints = [wide | {"wrist": wrist, "ear": None, "tail": None}, near | {"wrist": pck, "ear": pck, "tail": None}]
        return run | dict.fromkeys(names, pck), joints

    coarse, direct = Reading("coarse", 0), Reading("direct", 1)
    found = [rows("recipe", seed, coarse, 0.0, 0.0) for seed in (0, 1)] + [rows("plain", 0, coarse, 0.0, 0.0)]
    found += [rows("recipe", seed, direct, 0.5, 0.7 + seed / 10) for seed in (0, 1)]
    figures = []
    monkeypatch.setattr(plot, "write_figure", lambda path, figure: figures.append(figure))
    plot.write_errors("errors.png", [row for row, _ in found], [joint for _, joints in found for joint in joints])
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all", "occluded", "visible", "wrist", "ear"]
    both, one = axes.containers
    np.testing.assert_allclose(both[0].get_xdata(), [50, 50, 50, 25, np.nan])
    np.testing.assert_allclose(one[0].get_xdata(), [100, 100, 100, 100, np.nan])
    (bars,) = both[2]
    np.testing.assert_allclose(np.ptp(bars.get_segments()[3][:, 0]), 2 * 5)
    assert both.get_label() == "recipe, direct_1" and one.get_label() == "HRNet, coarse"


def test_ap_is_drawn_over_steps_and_over_latency(monkeypatch):
    """A panel a question; what is of an ablation, without DARK or not timed is left to the table."""

    def row(variant, reading, ap, times=None):
        return {"variant": variant, "reading": reading, "AP": Estimate(ap, 0.01 if times else None), "times": times}

    rows = [
        row("plain", Reading("coarse", 0), 0.2, 1.0),
        row("plain", Reading("unflipped", 0), 0.1, 0.7),
        row("recipe_no_own", Reading("direct", 1), 0.9),
        row("recipe", Reading("direct", 1), 0.3, 1.7),
        row("recipe", Reading("direct", 2), 0.4),
        row("recipe", Reading("ddim", 2), 0.35, 2.5),
        row("recipe", Reading("direct", 1, "none"), 0.6, 1.7),
    ]
    figures = []
    monkeypatch.setattr(plot, "write_figure", lambda path, figure: figures.append(figure))
    plot.write_plot("study.png", rows)
    drawn = [{line.get_label(): line[0].get_xydata().tolist() for line in axes.containers} for axes in figures[0].axes]
    assert drawn == [
        {"recipe, direct": [[1, 30], [2, 40]]},
        {"recipe, ddim": [[2, 35]]},
        {"recipe, direct": [[1.7, 30]]},
    ]
    # Of one seed there is no error to show.
    (bars,) = figures[0].axes[0].containers[0][2]
    np.testing.assert_allclose([np.ptp(segment[:, 1]) for segment in bars.get_segments() if len(segment)], [2])
    levels = [axes.lines[0].get_ydata() for axes in figures[0].axes[:2]]
    np.testing.assert_allclose(levels, 20)


def test_curves_are_drawn_over_training_time(study, monkeypatch):
    """Steps times how long one takes beside HRNet's; AP of evaluations alone, the mean over the runs that have any."""
    for name, seed, aps in (("plain", 0, (0.25, 0.5)), ("recipe", 0, (0.5, 0.75)), ("recipe", 1, (0.75, 0.875))):
        path = Path(study.folder, name, f"seed_{seed}", "metrics.jsonl")
        path.parent.mkdir(parents=True)
        lines = [{"step": 5, "loss": 1.0}, *({"step": 10 * (i + 1), "AP": ap} for i, ap in enumerate(aps))]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    timed = {"study": "a", "variant": "recipe", "timed": "train_step of plain", "K": None, "ms": 4.0, "times": 0.8}
    write_table(f"{study.folder}/latency.csv", [timed])
    found = study.curves([("plain", 0), ("recipe", 0), ("recipe", 1), ("one_pass", 0)])
    assert list(found) == ["plain", "recipe"] and len(found["recipe"]) == 2
    figures = []
    monkeypatch.setattr(plot, "write_figure", lambda path, figure: figures.append(figure))
    plot.write_curves("curves.png", found)
    lines = {line.get_label(): line.get_xydata() for line in figures[0].axes[0].lines}
    np.testing.assert_allclose(lines["HRNet"], [[10, 25], [20, 50]])
    np.testing.assert_allclose(lines["recipe"], [[12.5, 62.5], [25, 81.25]])


def test_steps_in_the_same_time(study, monkeypatch):
    """The recipe's step over the variant's, timed once and kept."""
    monkeypatch.setattr(runs, "_stepper", lambda recipe: recipe.loss.diffusion)
    measured = []

    def measure(calls, **_):
        measured.append(calls)
        return {name: Timing({"plain_same_time": 2.0, "recipe": 5.0}[name], 0.0, 9.0, 5) for name in calls}

    monkeypatch.setattr(runs.report, "measure", measure)
    assert study.pace("plain_same_time", "recipe") == pytest.approx(2.5)
    assert measured == [{"plain_same_time": 0.0, "recipe": 1.0}]
    assert study.pace("plain_same_time", "recipe") == pytest.approx(2.5) and len(measured) == 1
    own, recipe = study.table("latency.csv")
    assert (own["timed"], own["ms"], recipe["ms"], recipe["times"]) == ("train_step", 2000, 5000, 2.5)
    assert {"cpu", "cores", "device", "load", "jax"} <= own.keys()


def test_gains_are_paired_by_seed_and_decoding():
    coarse, step = Reading("coarse", 0), Reading("direct", 1)
    values = {("plain", 0, coarse): 0.25, ("plain", 1, coarse): 0.5, ("one_pass", 1, step): 0.75}
    values |= {("recipe", 0, step): 0.5, ("recipe", 1, step): 0.875}
    rows = [
        row_of(variant, seed, reading._replace(refine=refine), ap - (0.1 if refine == "none" else 0))
        for (variant, seed, reading), ap in values.items()
        for refine in REFINES
    ]
    timed = [{"variant": "recipe", "timed": "direct", "K": 1, "ms": 3.0, "times": 1.5}]
    for refine in REFINES:
        found = {(row["variant"], row["reading"]): row for row in summarise(rows, timed)}
        row = found["recipe", Reading("direct", 1, refine)]
        assert row["gain on HRNet"] == pytest.approx(((0.25 + 0.375) / 2, 0.125 / 2, False))
        assert row["gain on U-Net refiner"][:2] == (pytest.approx(0.125), None)
        assert (row["seeds"], row["ms"], row["times"]) == (2, 3.0, 1.5)
        assert found["plain", Reading("coarse", 0, refine)]["gain on HRNet"].mean == 0
        assert found["plain", Reading("coarse", 0, refine)]["gain on U-Net refiner"].mean == pytest.approx(-0.25)
    # A metric that is None everywhere has no mean; a control without the seed no gain.
    rows = [row_of("recipe", 0, step, 0.5, **{"PCK@0.1 occluded": None}), row_of("plain", 0, coarse, 0.25, "gpu")]
    (row, _) = summarise(rows)
    assert row["PCK@0.1 occluded"] is None and row["gain on U-Net refiner"] is None and row["ms"] is None
    assert row["gain on HRNet"] == (0.25, None, True)
    cells = in_points(row)
    assert (cells["variant"], cells["AP"], cells["gain on HRNet"], cells["AP75"]) == (
        "recipe",
        "50.0",
        "+25.0†",
        "50.0",
    )
    assert Estimate(-0.0123, 0.004).points(sign=True) == "−1.2 ± 0.4"


def test_light_variants_are_compared_with_those_of_their_head():
    """An HRNet and a U-Net refiner with the same heads and rows, and an HRNet of the same training time."""
    fields = {name: variant.fields for name, variant in VARIANTS.items()}
    for name, rows in (("light_sub", {}), ("light_sub_half", {"diffusion.every": 2})):
        plain, refiner, same_time = controls(name)
        assert fields[plain] == fields[same_time] == {"loss.diffusion": 0, "stride": 2, "model.upsampling": "subpixel"}
        no_masks = {"masks.keypoints": False, "masks.skeleton": False}
        assert fields[refiner] == fields[name] | no_masks | {"diffusion.own_share": 1}
        assert {"model.decoder": "light"}.items() | rows.items() <= fields[name].items()
        assert VARIANTS[same_time].same_time == name and controls(refiner)[:2] == (plain, refiner)
    assert (
        controls("recipe") == controls("plain")[:2] + ("plain_same_time",) == ("plain", "one_pass", "plain_same_time")
    )
    coarse, step = Reading("coarse", 0), Reading("direct", 1)
    rows = [row_of("plain_sub", 0, coarse, 0.25), row_of("plain_sub_time_of_light_sub", 0, coarse, 0.5)]
    rows += [row_of("light_sub", 0, step, 0.625), row_of("one_pass_light_sub", 0, step, 0.375)]
    timed = [{"variant": "light_sub", "timed": "train_step of plain_sub", "K": None, "ms": 4.0, "times": 0.8}]
    (light,) = (row for row in summarise(rows, timed) if row["variant"] == "light_sub")
    gains = [light[name].mean for name in ("gain on HRNet", "gain on U-Net refiner", "gain in the same time")]
    assert gains == [0.375, 0.25, 0.125] and light["training"] == 1.25 and in_points(light)["training"] == "1.25"


def test_a_study_of_another_recipe_is_named(study):
    """Before anything is trained; variants that are new there are none of that."""
    names = ["plain", "recipe"]
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
    study.check(["recipe"])
    with pytest.raises(
        ValueError, match=r"variants.plain={'loss.diffusion': 0.5} there and {'loss.diffusion': 0.0} here"
    ):
        study.check(names)


def test_what_no_study_compares_is_named(study):
    with pytest.raises(ValueError, match="--arms=plane: must be among plain, "):
        study.check(["plane"])
    detections = dataclasses.replace(study, recipe=study.recipe.override({"eval.boxes": "detections"}))
    with pytest.raises(ValueError, match="eval.boxes='detections': the study compares"):
        detections.check(["plain"])


def test_a_study_reports_every_run_and_resumes(tmp_path):
    """Without SC-CA, which takes long to compile."""
    steps = "--config.train.steps=2"
    arguments = ["study", "--config=tests/miniature.py", f"--out={tmp_path}", "--steps=2", "--arms=plain,recipe"]
    arguments += [f"--config.model.{half}_attention=False" for half in ("spatial", "channel")]
    arguments += [
        "--seconds=0.1",
        "--most_times=1000",
        "--config.train.checkpoint_every=2",
        "--config.train.evaluate_every=2",
    ]
    table, latencies = tmp_path / "study.csv", tmp_path / "latency.csv"
    done = command("benchmark.py", *arguments, steps, "--seeds=0")
    assert done.returncode == 0, done.stderr
    first = read_table(str(table))
    weights = tmp_path / "plain" / "seed_0" / "checkpoints" / "2"
    before = weights.stat().st_mtime_ns
    # As if an earlier version, which had no such reading, had finished it.
    first = [row for row in first if row["update"] != "ddim"]
    write_table(str(table), first)
    done = command("benchmark.py", *arguments, steps, "--seeds=0,1")
    assert done.returncode == 0, done.stderr
    assert weights.stat().st_mtime_ns == before and "recipe, seed 1:" in done.stdout
    rows = read_table(str(table))
    assert rows[: len(first)] == first
    assert list(dict.fromkeys((row["variant"], row["seed"]) for row in rows)) == [
        (variant, seed) for seed in (0, 1) for variant in ("plain", "recipe")
    ]
    facts = {name: rows[-1][name] for name in ("train_steps", "epochs", "training_device", "evaluation_device")}
    epochs = pytest.approx(2 * 8 / 21, abs=1e-6)  # 21 persons on 8 images
    assert facts == {"train_steps": 2, "epochs": epochs, "training_device": "cpu", "evaluation_device": "cpu"}
    joints = read_table(str(tmp_path / "joints.csv.gz"))
    assert {row["metric"] for row in joints} == {"AP", "PCK@0.2", "PCK@0.1"} and "left_wrist" in joints[0]
    summaries = {(row["variant"], row["reading"]): row for row in summarise(rows, read_table(str(latencies)))}
    assert all(row["seeds"] == (1 if reading.update == "ddim" else 2) for (_, reading), row in summaries.items())
    assert ("plain", Reading("direct", 2)) not in summaries
    coarse, direct = (summaries["recipe", reading] for reading in (Reading("coarse", 0), Reading("direct", 2)))
    assert coarse["times"] == 1 and direct["times"] == pytest.approx(direct["ms"] / coarse["ms"], abs=1e-3)
    gains = read_table(str(tmp_path / "gains.csv"))
    assert [(row["variant"], row["control"], row["seeds"]) for row in gains] == [("recipe", "plain", 2)]
    assert gains[0]["reading"].endswith("_2") and 0 < gains[0]["persons"] < 21 and gains[0]["AP ±"] >= 0
    assert "gains.csv lacks" not in done.stdout
    assert "U-Net refiner" in (tmp_path / "study.md").read_text()
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("study.png", "errors.png", "curves.png"))

    # `one_pass` is not there and stays so, and nothing is timed.
    only = ["--seeds=0,1", "--arms=plain,plain_same_time,recipe,one_pass", "--report_only"]
    report, identity = (tmp_path / "study.md").read_text(), (tmp_path / "study.json").read_text()
    latencies.unlink()
    # As if three steps fit in the time of two.
    same_time = [row | {"variant": "plain_same_time", "train_steps": 3} for row in first if row["variant"] == "plain"]
    write_table(str(table), [*rows, *same_time])
    its_joints = [
        row | {"variant": "plain_same_time"} for row in joints if (row["variant"], row["seed"]) == ("plain", 0)
    ]
    write_table(str(tmp_path / "joints.csv.gz"), [*joints, *its_joints])
    done = command("benchmark.py", *arguments, steps, *only)
    assert done.returncode == 0, done.stderr
    again = (tmp_path / "study.md").read_text()
    assert again.count("HRNet, same training time") == 4 and again != report
    assert (tmp_path / "study.json").read_text() == identity
    assert not any((tmp_path / name).exists() for name in ("one_pass", "latency.csv", "plain_same_time"))
    for wrong, message in (
        (("--arms=one_pass", "--report_only", steps), "no run of --arms=one_pass is finished there"),
        (("--config.train.steps=3", "--seeds=0"), "study.json: is of another recipe"),
    ):
        done = command("benchmark.py", *arguments, *wrong)
        assert done.returncode == 1 and message in done.stderr, done.stderr
