"""A step that does not fit into memory: said before it is taken, in one line that names the fields; what is held."""

import jax
import numpy as np
import pytest

from dpose_jax.evaluation import evaluator as evaluator_module
from dpose_jax.inference.predictor import Predictor
from dpose_jax.runtime import sharding
from dpose_jax.runtime.shortage import named_shortage
from dpose_jax.training import memory
from dpose_jax.training.changes import held
from dpose_jax.training.optimizer import kept_parts
from dpose_jax.workdir import model_folder

GIB = 1 << 30


def test_a_step_that_needs_more_than_there_is_names_four_fields(miniature, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 24 * GIB)
    recipe = miniature(train__batch_size=128)
    memory.check_fits(24 * GIB, recipe)
    with pytest.raises(ValueError) as error:
        memory.check_fits(41 * GIB, recipe)
    text = str(error.value)
    assert "\n" not in text and "needs 41.0 GiB a device, which has 24.0 GiB" in text
    for part in ("train.batch_size=128", "train.accumulate=1", "model.dtype=bfloat16", "model.remat=blocks"):
        assert part in text
    with pytest.raises(ValueError) as error:
        memory.check_fits(41 * GIB, miniature(model__dtype="bfloat16", model__remat="blocks"))
    assert "dtype" not in str(error.value) and "remat" not in str(error.value)
    monkeypatch.setattr(memory, "device_memory", lambda: None)
    memory.check_fits(1 << 60, recipe)


def test_memory_of_the_cpu_is_the_containers(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "none")
    whole = memory.device_memory()
    assert whole * jax.local_device_count() > GIB // 2
    for text, expected in (("max\n", whole), (f"{GIB // 4}\n", GIB // 4 // jax.local_device_count())):
        monkeypatch.setattr(memory, "CGROUP", tmp_path / "memory.max")
        memory.CGROUP.write_text(text)
        assert memory.device_memory() == expected


def test_exhausted_memory_is_one_line(miniature):
    text = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 43.21GiB.\nlong\ntraceback"
    with pytest.raises(ValueError, match=r"too small: Out of memory .* 43\.21GiB; lower train\.batch_size=8, .*remat"):
        with named_shortage(memory.ways_to_fit(miniature())):
            raise jax.errors.JaxRuntimeError(text)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with named_shortage(""):
            raise jax.errors.JaxRuntimeError("INTERNAL: other")


def test_exhausted_memory_of_a_prediction_is_one_line():
    recipe, variables, _ = model_folder.load(model_folder.SHIPPED)
    predictor = Predictor(recipe, variables, batch_sizes=(1, 4))

    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nlong")

    predictor._run = predictor._trace = fail
    for predict in (predictor, lambda image: predictor.trace(image, [[0, 0, 9, 9]])):
        with pytest.raises(
            ValueError, match=r"^the device's memory is too small: Out of memory; use smaller .*\(1, 4\)$"
        ):
            predict(np.zeros((20, 20, 3), np.uint8))


def test_exhausted_memory_of_an_evaluation_names_its_batch(miniature, monkeypatch):
    evaluator = evaluator_module.Evaluator(miniature(model__dtype="bfloat16"), sharding.make_mesh())

    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.")

    monkeypatch.setattr(evaluator_module, "predict_split", fail)
    with pytest.raises(ValueError, match=r"; lower eval\.batch_size=\d+$"):
        evaluator.predict({})


@pytest.mark.parametrize(
    ("fields", "kept", "text"),
    [
        ({}, (), None),
        ({"optim__backbone_rate": 0.1}, (), "HRNet learns at 0.1 of the rate"),
        (
            {"optim__freeze_backbone_steps": 9},
            (),
            "HRNet stays as it is to step 9; the coarse branch is trained from the first step, "
            "optim.backbone_rate=0 with loss.coarse=0 keeps both",
        ),
        (
            {"optim__backbone_rate": 0.0},
            ("hrnet",),
            "HRNet stays as it is; the coarse branch is trained, loss.coarse=0",
        ),
        ({"optim__backbone_rate": 0.0, "loss__coarse": 0.0}, ("hrnet", "coarse_head"), "the denoiser alone is trained"),
    ],
)
def test_what_is_held_is_said(miniature, fields, kept, text):
    recipe = miniature(**fields)
    assert kept_parts(recipe) == kept
    lines = held(recipe)
    assert [text in line for line in lines] == ([] if text is None else [True])
