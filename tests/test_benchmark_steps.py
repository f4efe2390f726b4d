"""The benchmark of sampling steps, on a miniature model: which runs, what they cost, how accurate they are."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import sampling
from benchmarks.sampling import PARTS, Run, measure_accuracy, measure_costs, plan
from dpose_jax import Predictor
from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches
from dpose_jax.evaluation.evaluator import evaluate


def test_plan(miniature):
    """The coarse branch once; every update with every K; restarts of one step; early stop where it can save."""
    runs = plan(miniature(), [4, 0, 1], ["direct", "ddim"], 250, 0.1)
    names = [(run.update, run.steps) for run in runs]
    assert names == [
        ("coarse", 0),
        *[("direct", 1), ("direct", 4), ("direct, early stop", 4)],
        *[("ddim", 1), ("ddim", 4), ("ddim, early stop", 4)],
        *[("restarts", 1), ("restarts", 4)],
    ]
    assert len({run.name for run in runs}) == len(runs)
    assert [run.hypotheses for run in runs] == [1] * 8 + [4]
    assert runs[0].settings is None
    assert (runs[2].settings.steps, runs[2].settings.update_rule, runs[2].settings.early_stop) == (4, "direct", 0.0)
    assert runs[6].settings.early_stop == 0.1
    fresh = runs[-1].settings
    assert (fresh.steps, fresh.start, fresh.t_start, fresh.update_rule) == (1, "coarse_noised", 250, "direct")
    assert [run.update for run in plan(miniature(), [2], ["ddim"], None, 0)] == ["ddim"]


@pytest.mark.parametrize(
    ("steps", "updates", "noise_time", "message"),
    [
        ([], ["direct"], None, r"steps=\[\]"),
        ([1, 1], ["direct"], None, r"steps=\[1, 1\]"),
        ([-1], ["direct"], None, r"steps=\[-1\]"),
        ([1], ["indirect"], None, "update_rule='indirect'"),
        ([1], ["direct"], 0, "noise_time=0: must lie in 1..T = 1000"),
        ([1], ["direct"], 1001, "noise_time=1001: must lie in 1..T = 1000"),
    ],
)
def test_bad_plans_are_named(miniature, steps, updates, noise_time, message):
    with pytest.raises(ValueError, match=message):
        plan(miniature(), steps, updates, noise_time, 0)


@pytest.fixture(scope="module")
def measured(trained):
    """Costs of five runs at a batch of two, and what the runs are of."""
    config, workdir = trained
    predictor = Predictor.from_workdir(workdir)
    runs = plan(config, [0, 2], ["direct"], 300, 0)
    direct = runs[1]
    runs.append(dataclasses.replace(direct, update="unflipped", flip=False))
    alone = dataclasses.replace(direct.settings, mirrored=False)
    runs.append(dataclasses.replace(direct, update="unmirrored", settings=alone))
    source = make_source(config, "val", training=False)
    crops = next(iter(eval_batches(config, source, 2)))["image"]
    found = measure_costs(config, predictor.model, predictor.variables, runs, crops[None], 0.01)
    return config, predictor, source, runs, found


def test_costs(measured):
    """Every part is timed; FLOPs add up over the steps, where XLA's own count of a scan would not."""
    _, _, _, (coarse, direct, restarts, unflipped, unmirrored), (parts, figures, _) = measured
    assert list(parts) == list(PARTS)
    for part in parts.values():
        assert 0 < part["ms_low"] <= part["ms"] <= part["ms_high"]
    flops = {name: part["gflops"] for name, part in parts.items()}
    assert flops["backbone"] > 0 and flops["step"] > 0
    around = flops["backbone"] + flops["decode"]
    assert figures[coarse]["gflops"] == pytest.approx(around, abs=2e-3)
    assert figures[direct]["gflops"] == pytest.approx(around + flops["condition"] + 2 * flops["step"], abs=2e-3)
    denoised = flops["condition"] + 2 * flops["step"]
    assert figures[unflipped]["gflops"] == pytest.approx(flops["decode"] + (flops["backbone"] + denoised) / 2, abs=2e-3)
    assert figures[unmirrored]["gflops"] == pytest.approx(around + denoised / 2, abs=2e-3)
    assert figures[restarts]["gflops"] == pytest.approx(around + 2 * (flops["condition"] + flops["step"]), abs=2e-3)
    anew = dataclasses.replace(direct, settings=dataclasses.replace(direct.settings, refresh=True))
    assert sampling._of_network(anew, flops, flip=True) == pytest.approx(
        flops["backbone"] + 2 * (denoised - flops["step"])
    )
    for figure in figures.values():
        assert figure["memory_mib"] > 0 and figure["ratio"] > 0 and 0 < figure["ms_low"] <= figure["ms_high"]


def test_parts_are_what_a_run_is_made_of(measured):
    """One step put together from the parts by hand gives the run's own joints."""
    config, predictor, source, _, _ = measured
    images = next(iter(eval_batches(config, source, 2)))["image"]
    parts = sampling.make_parts(predictor.model, predictor.variables, images, flip=True)
    (encode, (variables, doubled)), (condition, _), (step, _), (decode, _) = (parts[name] for name in PARTS)
    model = predictor.model

    @jax.jit
    def by_hand(variables, images):
        features, coarse = encode(variables, images)
        y = model.codec.normalise(model.codec.peaks(coarse, "dark")[0]).clip(-1, 1)
        estimate = step(variables, coarse, condition(variables, features, y), np.full(4, 1000))
        return decode(estimate)

    (keypoints, scores), _ = by_hand(variables, doubled)
    found = jax.jit(predictor.pure())(predictor.variables, images, np.arange(2, dtype=np.int32))
    np.testing.assert_allclose(keypoints, found["keypoints"], atol=2e-3)
    np.testing.assert_allclose(scores, found["scores"], atol=1e-5)


def test_accuracy_is_the_evaluations(measured, trained, tmp_path):
    config, predictor, source, runs, (_, _, programs) = measured
    found = measure_accuracy(config, source, programs, 2, predictor.joint_set)
    expected = evaluate(trained[0], trained[1], str(tmp_path / "report.json"))["results"]
    assert set(found) == {run.name for run in runs}
    for name, other in (("coarse_0", "coarse"), ("direct_2", "steps_2")):
        assert found[name] == pytest.approx(expected[other], abs=2e-3)


def test_plot(tmp_path):
    pytest.importorskip("matplotlib", reason="the optional extra `benchmark`")
    import cv2

    from benchmarks.steps_plot import write_plot

    rows = [{"update": "coarse", "steps": 0, "ms": 10.0, "AP": 0.5, "PCK@0.2": None}]
    rows += [{"update": "direct", "steps": k, "ms": 10.0 + k, "AP": 0.5 + k / 100, "PCK@0.2": None} for k in (1, 2)]
    write_plot(str(tmp_path / "steps.png"), rows)
    picture = cv2.imread(str(tmp_path / "steps.png"))
    assert picture.shape[0] > 300 and picture.std() > 5


def test_run_names_itself():
    assert Run("direct", 4, None).name == "direct_4"
