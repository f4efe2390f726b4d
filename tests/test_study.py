"""The study, on a miniature: what its arms are, what is read from them, how it goes on after a stop."""

import json
import types

import cv2
import numpy as np
import pytest
from commands import command
from dpose_jax.training.fields import check_fields

from benchmarks import study
from benchmarks.report import Timing
from benchmarks.study import plot
from benchmarks.study.pictures import person_oks, write_changes
from benchmarks.study.readings import predict, score
from benchmarks.study.variants import ARMS, arm_config, lines_of
from dpose_jax.data.datasets import make_source
from dpose_jax.evaluation.evaluator import evaluate, restore
from dpose_jax.evaluation.report import Predictions
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.visualization import draw
from dpose_jax.workdir.files import write_json

ENDS = ("", " without DARK")
VARIANTS = (("direct", "eval.flip", True), ("unflipped", "eval.flip", False), ("unmirrored", "sampler.mirrored", False))


def test_every_arm_is_a_valid_config(miniature):
    for name, arm in ARMS.items():
        config = arm_config(miniature(input_size=(128, 96)), arm, 3, 7)
        assert (config.seed, config.train.steps) == (3, 7), name
        check_fields(config)
        build_model(config)
        lines = lines_of(config, arm, [1, 2], 300)
        assert list(lines) == list(arm.samplings) and all(lines.values()), name
    assert [run.name for run in lines_of(config, ARMS["one_pass"], [1, 2], 300)["direct"]] == ["direct_1"]


def test_readings_are_those_of_the_evaluation(trained, tmp_path):
    """By DARK; and without it the peak's own pixel decides."""
    config, workdir = trained
    source = make_source(config, "val", training=False)
    predictions = predict(config, ARMS["written"], restore(config, workdir).variables, source, [1, 2], 300)
    found = score(config, source, predictions)
    lines = [f"{line}_{k}" for line in ("direct", "unmirrored", "unflipped", "ddim", "restarts") for k in (1, 2)]
    lines.append("unflipped_0")
    assert set(found) == {f"{name}{end}" for name in ("coarse", *lines) for end in ENDS}
    for line, field, value in VARIANTS:
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: value})
        report = evaluate(other, workdir, str(tmp_path / "report.json"))
        pairs = {f"{line}_1": "steps_1", f"{line}_2": "steps_2"}
        pairs |= {"direct": {"coarse": "coarse"}, "unflipped": {"unflipped_0": "coarse"}}.get(line, {})
        for mine, theirs in pairs.items():
            for metric, value in report["results"][theirs].items():
                assert found[mine][metric] == pytest.approx(value, abs=1e-3), (mine, metric)
            assert found[mine]["joints"].keys() == report["joints"][theirs].keys()
    assert found["direct_1"] != found["unflipped_1"] and found["direct_1"] != found["unmirrored_1"]
    assert found["coarse"] != found["coarse without DARK"]


def test_pages_show_the_largest_changes(miniature, tmp_path, monkeypatch):
    """Persons 1 and 2 are mended, person 0 is spoilt."""
    config = miniature()
    source = make_source(config, "val", training=False)
    truth = np.stack([source[i].keypoints for i in range(len(source))])[..., :2].astype(np.float64)
    index, scores = np.arange(len(source)), np.ones(truth.shape[:2])
    wrong, spoilt = truth.copy(), truth.copy()
    wrong[1:3] += [[[4.0]], [[2.0]]]
    spoilt[0] += 3.0
    found = {"a": Predictions(index, wrong, scores), "b": Predictions(index, spoilt, scores)}
    similarity = person_oks(config, source, found["a"])
    np.testing.assert_allclose(np.delete(similarity, [1, 2]), 1.0)
    assert similarity[1] < similarity[2] < 0.95

    shown, comparison_sheet = [], draw.comparison_sheet
    monkeypatch.setattr(
        draw, "comparison_sheet", lambda *args, **kw: shown.append(args) or comparison_sheet(*args, **kw)
    )
    write_changes(str(tmp_path), config, source, found, "a", "b")
    (_, helped, _, captions), (_, harmed, _, _) = shown
    assert captions[:2] == [f"OKS {similarity[i]:.2f} -> 1.00" for i in (1, 2)]
    np.testing.assert_allclose(helped["b"][:2], helped["ground truth"][:2], atol=1e-3)
    assert np.all(np.abs(helped["a"][0] - helped["ground truth"][0]) > 0.5)
    np.testing.assert_allclose(harmed["a"][0], harmed["ground truth"][0], atol=1e-3)
    assert np.all(np.abs(harmed["b"][0] - harmed["ground truth"][0]) > 0.5)
    for name in ("helps.png", "harms.png"):
        assert cv2.imread(str(tmp_path / name)).shape[0] > 5 * config.input_size[0]


def test_errors_are_shown_by_visibility_and_joint(monkeypatch):
    """The mean over seeds of what PCK leaves, with its standard error; a joint without any is left blank."""

    def reading(pck, wrist):
        joints = {"wrist": {"PCK@0.2": wrist, "PCK@0.1": pck}, "ear": {"PCK@0.2": None, "PCK@0.1": pck}}
        every = {f"{metric}{end}": pck for metric in ("PCK@0.2", "PCK@0.1") for end in ("", " occluded", " visible")}
        return every | {"joints": joints}

    worst = {"coarse": reading(0.0, 0.0)}
    runs = {("recipe", seed): {"readings": worst | {"direct_1": reading(0.5, 0.7 + seed / 10)}} for seed in (0, 1)}
    figures = []
    monkeypatch.setattr(plot, "_save", lambda figure, path: figures.append(figure))
    plot.write_errors("errors.png", runs | {("plain", 0): {"readings": worst}})
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all", "occluded", "visible", "wrist", "ear"]
    both, one = axes.containers
    np.testing.assert_allclose(both[0].get_xdata(), [0.5, 0.5, 0.5, 0.25, np.nan])
    np.testing.assert_allclose(one[0].get_xdata(), [1, 1, 1, 1, np.nan])
    (bars,) = both[2]
    np.testing.assert_allclose(np.ptp(bars.get_segments()[3][:, 0]), 2 * 0.05)
    assert both.get_label() == "recipe, direct_1" and one.get_label() == "plain, coarse"


def test_ap_is_drawn_over_steps_and_over_latency(monkeypatch):
    """A panel a question; what is of an ablation, without DARK or not timed is left to the table."""

    def row(arm, reading, ap, times=None):
        return {"arm": arm, "reading": reading, "AP": ap, "AP se": 0.01 if times else None, "times_plain": times}

    rows = [
        row("plain", "coarse", 0.2, 1.0),
        row("plain", "unflipped_0", 0.1, 0.7),
        row("recipe_residual", "direct_1", 0.9),
    ]
    rows += [row("recipe", name, ap, times) for name, ap, times in (("direct_1", 0.3, 1.7), ("direct_2", 0.4, None))]
    rows += [row("recipe", "ddim_2", 0.35, 2.5), row("recipe", "direct_1 without DARK", 0.6, 1.7)]
    figures = []
    monkeypatch.setattr(plot, "_save", lambda figure, path: figures.append(figure))
    plot.write_plot("study.png", rows)
    drawn = [{line.get_label(): line[0].get_xydata().tolist() for line in axes.containers} for axes in figures[0].axes]
    assert drawn == [
        {"recipe, direct": [[1, 0.3], [2, 0.4]]},
        {"recipe, ddim": [[2, 0.35]]},
        {"recipe, direct": [[1.7, 0.3]]},
    ]
    # Of one seed there is no error to show.
    (bars,) = figures[0].axes[0].containers[0][2]
    np.testing.assert_allclose([np.ptp(segment[:, 1]) for segment in bars.get_segments() if len(segment)], [0.02])
    levels = [axes.lines[0].get_ydata() for axes in figures[0].axes[:2]]
    np.testing.assert_allclose(levels, 0.2)


def test_steps_in_the_same_time(miniature, tmp_path, monkeypatch):
    """A step counts as the mean over the run's phases; what was timed is kept for the config that it was timed with."""
    monkeypatch.setattr(study, "OUT", types.SimpleNamespace(value=str(tmp_path)))
    monkeypatch.setattr(study, "REPORT_ONLY", types.SimpleNamespace(value=False))
    phases = {"late_same_time": {1: None, 4: None}, "recipe": {4: None}}
    monkeypatch.setattr(study, "_steppers", lambda recipe, name: phases[name])
    seconds = {("late_same_time", 1): 1.0, ("late_same_time", 4): 3.0, ("recipe", 4): 5.0}

    timed = {name: Timing(median, 0.0, 9.0, 5) for name, median in seconds.items()}
    monkeypatch.setattr(study.report, "measure", lambda calls, **_: {name: timed[name] for name in calls})
    assert study.pace(miniature(), "late_same_time") == pytest.approx(5.0 / 2.5)
    kept = json.loads((tmp_path / "late_same_time" / "pace.json").read_text())
    assert kept["config"]["optim"]["denoiser_from"] == 0.5 and kept["seconds"]["recipe"] == 5.0
    timed["recipe", 4] = Timing(10.0, 0.0, 19.0, 5)
    assert study.pace(miniature(), "late_same_time") == pytest.approx(2.0)
    assert study.pace(miniature(stride=8), "late_same_time") == pytest.approx(4.0)


def test_gains_are_paired_by_seed_and_decoding():
    def reading(ap):
        return dict.fromkeys(study.METRICS, 0.5) | {"AP": ap, "PCK@0.1 occluded": None}

    def run(coarse, step=None):
        found = {"coarse": coarse} | ({} if step is None else {"direct_1": step})
        return {
            "readings": {
                f"{name}{end}": reading(ap - (0.1 if end else 0)) for name, ap in found.items() for end in ENDS
            }
        }

    runs = {("plain", 0): run(0.25), ("plain", 1): run(0.5), ("one_pass", 1): run(0.5, 0.75)}
    runs |= {("recipe", 0): run(0.25, 0.5), ("recipe", 1): run(0.5, 0.875)}
    ms = dict.fromkeys(("coarse", "direct_1"), {"ms": 1.0, "times_plain": 1.0})
    rows = study.summarise(runs, dict.fromkeys(("plain", "one_pass", "recipe"), ms))
    for end in ENDS:
        (row,) = [row for row in rows if (row["arm"], row["reading"]) == ("recipe", f"direct_1{end}")]
        assert row["gain"] == pytest.approx((0.25 + 0.375) / 2) and row["gain se"] == pytest.approx(0.125 / 2)
        assert row["gain on one_pass"] == pytest.approx(0.125) and row["gain on one_pass se"] is None
        assert row["PCK@0.1 occluded"] is None and row["PCK@0.1 visible"] == 0.5
    # Without K = 1 the control has no reading to be held against, and a kept latency may lack one.
    runs["one_pass", 1] = run(0.5)
    rows = study.summarise(runs, dict.fromkeys(("plain", "one_pass", "recipe"), {"coarse": ms["coarse"]}))
    (row,) = [row for row in rows if (row["arm"], row["reading"]) == ("recipe", "direct_1")]
    assert row["gain on one_pass"] is None and row["gain"] == pytest.approx(0.3125) and "ms" not in row


def test_a_run_of_another_config_is_named(trained, tmp_path):
    """Before anything is trained, finished or not."""
    config, workdir = trained
    wanted = {"config": json.loads(config.to_json_best_effort()), "K": [1, 2], "noise_time": 300}
    study.check_folder(str(tmp_path / "nothing"), wanted)
    study.check_folder(workdir, wanted)
    other = json.loads(json.dumps(wanted))
    other["config"]["diffusion"]["own_share"] = 0.25
    with pytest.raises(
        ValueError, match=rf"^{workdir}: is of another config.*: config.diffusion.own_share=0.5 there and 0.25 here;"
    ):
        study.check_folder(workdir, other)
    write_json(str(tmp_path / "readings.json"), wanted | {"run": {}, "protocol": {}})
    study.check_folder(str(tmp_path), wanted)
    with pytest.raises(ValueError, match=r"readings.json: .*: K=\[1, 2\] there and \[4\] here;"):
        study.check_folder(str(tmp_path), wanted | {"K": [4]})


def test_what_was_measured_is_kept_for_its_settings(tmp_path):
    path, measured = str(tmp_path / "latency.json"), iter([{"ms": 1.0}, {"ms": 2.0}])
    for wanted, ms in (({"K": [1]}, 1.0), ({"K": [1]}, 1.0), ({"K": [2]}, 2.0), ({"K": [2]}, 2.0)):
        assert study._kept(path, wanted, lambda: next(measured)) == wanted | {"ms": ms}


def test_facts_that_differ_are_not_shared():
    facts = {"zeta": 2.0, "codec": "unbiased", "flip": True, "seed": 0}
    runs = {("a", 0): {"protocol": facts}, ("b", 1): {"protocol": facts | {"zeta": 5.0}}}
    assert study.shared_facts(runs) == {"codec": "unbiased"}


def test_a_study_reports_every_run_and_goes_on(tmp_path):
    steps = "--config.train.steps=2"
    arguments = [
        "study",
        "--config=tests/miniature.py",
        f"--out={tmp_path}",
        "--steps=2",
        "--arms=plain,recipe",
        "--seconds=0.1",
    ]
    arguments += ["--config.model.backbone=speck", "--config.train.checkpoint_every=2"]
    done = command("benchmark.py", *arguments, steps, "--seeds=0")
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "study.json").read_text())
    weights = tmp_path / "plain" / "seed_0" / "checkpoints" / "2"
    # As if an earlier version, which had no such reading, had finished it.
    path = tmp_path / "recipe" / "seed_0" / "readings.json"
    finished = json.loads(path.read_text())
    for readings in (finished["run"]["readings"], first["runs"][1]["readings"]):
        del readings["ddim_2"], readings["ddim_2 without DARK"]
    path.write_text(json.dumps(finished))
    before = weights.stat().st_mtime_ns
    done = command("benchmark.py", *arguments, steps, "--seeds=0,1")
    assert done.returncode == 0, done.stderr
    assert weights.stat().st_mtime_ns == before and "recipe, seed 1:" in done.stdout
    report = json.loads((tmp_path / "study.json").read_text())
    assert [(run["arm"], run["seed"]) for run in report["runs"]] == [
        (arm, seed) for seed in (0, 1) for arm in ("plain", "recipe")
    ]
    assert report["runs"][:2] == first["runs"]
    assert all(row["seeds"] == (1 if row["reading"].startswith("ddim") else 2) for row in report["rows"])
    by_name = {(row["arm"], row["reading"]): row for row in report["rows"]}
    assert ("plain", "direct_1") not in by_name and ("recipe", "ddim_2 without DARK") in by_name
    assert by_name["plain", "coarse"]["gain"] == 0
    values = [run["readings"]["direct_2"]["AP"] for run in report["runs"] if run["arm"] == "recipe"]
    row = by_name["recipe", "direct_2"]
    assert row["AP"] == pytest.approx(np.mean(values))
    assert row["AP se"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert row["gain"] == pytest.approx(row["AP"] - by_name["plain", "coarse"]["AP"])
    coarse, undark = by_name["recipe", "coarse"], by_name["recipe", "direct_2 without DARK"]
    assert coarse["times_plain"] == 1 and row["times_plain"] == pytest.approx(row["ms"] / coarse["ms"], abs=1e-3)
    assert (undark["ms"], undark["times_plain"]) == (row["ms"], row["times_plain"])
    assert (tmp_path / "recipe" / "seed_1" / "harms.png").exists()
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("study.png", "errors.png"))

    # `one_pass` is not there and stays so, and what no longer has a latency is not timed.
    arms = ["--seeds=0,1", "--arms=plain,plain_same_time,recipe,one_pass", "--report_only"]
    done = command("benchmark.py", *arguments, steps, *arms)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "study.json").read_text())
    assert again["rows"] == report["rows"] and again["runs"] == report["runs"]
    (tmp_path / "plain" / "latency.json").unlink()
    # As if it had been timed that three steps fit in the time of two.
    same_time = json.loads((tmp_path / "plain" / "seed_0" / "readings.json").read_text())
    same_time["config"]["train"]["steps"] = same_time["run"]["steps"] = 3
    write_json(str(tmp_path / "plain_same_time" / "seed_0" / "readings.json"), same_time)
    done = command("benchmark.py", *arguments, steps, *arms)
    assert done.returncode == 0 and "plain: no latency is kept" in done.stdout, done.stderr
    rows = {(row["arm"], row["reading"]): row for row in json.loads((tmp_path / "study.json").read_text())["rows"]}
    assert "ms" not in rows["plain", "coarse"] and "ms" in rows["recipe", "coarse"]
    assert rows["plain_same_time", "coarse"]["AP"] == same_time["run"]["readings"]["coarse"]["AP"]
    absent = [tmp_path / "one_pass", tmp_path / "plain" / "latency.json", tmp_path / "plain_same_time" / "pace.json"]
    assert not any(path.exists() for path in absent)
    done = command("benchmark.py", *arguments, steps, "--arms=one_pass", "--report_only")
    assert done.returncode == 1 and "no run of --arms=one_pass is finished there" in done.stderr
    done = command("benchmark.py", *arguments, "--config.train.steps=3", "--seeds=0")
    assert done.returncode == 1 and "readings.json: is of another config" in done.stderr
    done = command("benchmark.py", *arguments, steps, "--config.eval.boxes=detections")
    assert done.returncode == 1 and "eval.boxes='detections': the study compares" in done.stderr
    done = command("benchmark.py", *arguments, steps, "--arms=plane")
    assert done.returncode == 1 and "--arms=plane: must be among plain, " in done.stderr
