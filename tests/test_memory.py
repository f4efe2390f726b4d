"""A step that does not fit into memory: said before it is taken, in one line that names the fields; what is held."""

import jax
import pytest

from dpose_jax.runtime.shortage import named_shortage
from dpose_jax.training import memory
from dpose_jax.training.changes import held
from dpose_jax.training.optimizer import kept_parts

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
