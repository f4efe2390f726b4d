"""The benchmark of sampling steps, on a miniature model: which runs, what they cost, how accurate they are."""

import json

import pytest
from commands import command

from benchmarks.sampling import measure_accuracy, measure_costs, plan
from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches
from dpose_jax.evaluation.evaluator import evaluate, restore


def test_plan(miniature):
    """The coarse branch once; every update with every K; restarts of one step; what costs less than `direct`."""
    found = plan(miniature(), [4, 0, 1], ["direct", "ddim", "restarts", "unmirrored", "unflipped"], 250)
    updates = ("direct", "ddim", "restarts", "unmirrored")
    names = [("coarse", 0), *[(update, k) for update in updates for k in (1, 4)]]
    assert [(one.update, one.steps) for one in found] == [*names, *[("unflipped", k) for k in (0, 1, 4)]]
    by_name = {(one.update, one.steps): one for one in found}
    assert [by_name["restarts", k].hypotheses for k in (1, 4)] == [1, 4]
    assert by_name["coarse", 0].settings is None and by_name["unflipped", 0].settings is None
    for update, rule, mirrored, flip in (("direct", "direct", True, True), ("ddim", "ddim", True, True)):
        one = by_name[update, 4]
        assert (one.settings.steps, one.settings.update_rule) == (4, rule)
        assert (one.settings.mirrored, one.flip, one.hypotheses) == (mirrored, flip, 1)
    assert not by_name["unmirrored", 4].settings.mirrored and not by_name["unflipped", 4].flip
    fresh = by_name["restarts", 4].settings
    assert (fresh.steps, fresh.start, fresh.t_start, fresh.update_rule) == (1, "coarse_noised", 250, "direct")
    assert [one.update for one in plan(miniature(), [2], ["ddim"], 300)] == ["ddim"]


@pytest.mark.parametrize(
    ("steps", "updates", "noise_time", "message"),
    [
        ([], ["direct"], 300, r"steps=\[\]"),
        ([1, 1], ["direct"], 300, r"steps=\[1, 1\]"),
        ([-1], ["direct"], 300, r"steps=\[-1\]"),
        ([1], ["indirect"], 300, "update='indirect'"),
        ([1], ["restarts"], 0, "noise_time=0: must lie in 1..T = 1000"),
        ([1], ["restarts"], 1001, "noise_time=1001: must lie in 1..T = 1000"),
    ],
)
def test_bad_plans_are_named(miniature, steps, updates, noise_time, message):
    with pytest.raises(ValueError, match=message):
        plan(miniature(), steps, updates, noise_time)


def test_costs_and_predictions(trained, tmp_path):
    """Every way is timed, and predicts what the evaluation does."""
    recipe, workdir = trained
    variables = restore(recipe, workdir).variables
    samplings = plan(recipe, [0, 2], ["direct", "restarts"], 300)
    source = make_source(recipe, "val", training=False)
    crops = next(iter(eval_batches(recipe, source, 2)))["image"]
    figures, programs = measure_costs(recipe, variables, samplings, crops[None], 0.01)
    assert list(figures) == list(programs) == samplings
    for figure in figures.values():
        assert 0 < figure["ms_low"] <= figure["ms"] <= figure["ms_high"] <= figure["ms_p95"] and figure["calls"] >= 5
        assert figure["memory_mib"] > 0 and figure["compile_seconds"] >= 0

    found = measure_accuracy(recipe, source, programs, 2)
    expected = evaluate(recipe, workdir, str(tmp_path / "report.json"))["results"]
    coarse, direct, restarts = samplings
    assert found[coarse] == pytest.approx(expected["coarse"], abs=2e-3)
    assert found[direct] == pytest.approx(expected["steps_2"], abs=2e-3)
    assert found[restarts] != found[direct]


def test_labels_do_not_overlap():
    """Lines of two dtypes and two updates of almost the same accuracy and time."""
    figure = pytest.importorskip("matplotlib.figure", reason="the optional extra `benchmark`").Figure
    labels = pytest.importorskip("benchmarks.labels")
    sheet = figure(figsize=(6, 5))
    axes = sheet.subplots()
    points = {(10 * k + 0.01 * i, 60 + 0.1 * i): (str(k), f"C{i}") for i in range(4) for k in (1, 2, 4, 8, 16)}
    axes.plot(*zip(*points, strict=True), "o")
    sheet.draw_without_rendering()
    texts = labels.place_labels(axes, points)
    boxes = [text.get_window_extent() for text in texts]
    assert [text.get_text() for text in texts] == [text for text, _ in points.values()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for text, box in zip(texts, boxes, strict=True):
        x, y = axes.transData.transform(text.xy)
        assert abs((box.x0 + box.x1) / 2 - x) < 60 and abs((box.y0 + box.y1) / 2 - y) < 60


def test_the_command_needs_a_workdir_alone(trained, tmp_path):
    """It reads the workdir's own recipe; the table, the report and the plot are of every way."""
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("matplotlib", reason="the optional extra `benchmark`")
    arguments = [f"--workdir={trained[1]}", f"--out={tmp_path}", "--steps=0,1", "--update=direct", "--norestarts"]
    done = command("benchmark.py", "steps", *arguments, "--batch=2", "--seconds=0.01")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "steps.json").read_text())
    assert [(row["update"], row["steps"]) for row in report["rows"]] == [("coarse", 0), ("direct", 1)]
    for row in report["rows"]:
        assert 0 < row["ms"] <= row["ms_p95"] and row["calls"] >= 5 and row["batch_calls"] >= 5 and "AP" in row
        assert row["persons_per_s_low"] <= row["persons_per_s"] <= row["persons_per_s_high"]
        assert row["dtype"] == "float32"
    assert report["protocol"]["copies"] == "crops to the device count, joints to the host do not"
    assert report["protocol"]["seed"] == trained[0].seed and report["environment"]["cores"] > 0
    picture = cv2.imread(str(tmp_path / "steps.png"))
    assert picture.shape[0] > 300 and picture.std() > 5
