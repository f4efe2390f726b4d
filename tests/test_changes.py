"""What a run says: changes since the checkpoint, other processes with another recipe; and only our lines."""

import json
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import pytest

from dpose_jax.data.datasets import make_source
from dpose_jax.runtime import cpu, multihost
from dpose_jax.training.changes import changes, fingerprint
from dpose_jax.workdir import files
from dpose_jax.workdir.checkpoints import claim_workdir
from dpose_jax.workdir.starts import record_start

ROOT = pathlib.Path(__file__).parents[1]
DATA = {"persons": 21, "sha256": "a"}


@pytest.fixture
def claimed(miniature, tmp_path):
    """The workdir of a run of 100 steps, and a function from fields and data to what changed at step 50."""
    before = {"train__steps": 100, "optim__schedule": "cosine", "train__checkpoint_every": 50}
    claim_workdir(miniature(**before), str(tmp_path))
    record_start(str(tmp_path), 0, DATA)
    return tmp_path, lambda data=DATA, **fields: changes(miniature(**before | fields), str(tmp_path), 50, data)


def test_nothing_changed(claimed):
    """Nor does what has no influence on the parameters count."""
    assert claimed[1]() == []
    assert claimed[1](data__workers=3, train__log_every=1, eval__flip=False, sampler__steps=(4,)) == []


def test_a_longer_run_says_its_rate(claimed):
    """Half of a cosine of 100 steps is an eighth of one of 400: the figures are the schedule's."""
    first, second = claimed[1](train__steps=400)
    assert first == "train.steps goes from 100 to 400"
    before, after = (
        float(part) for part in second.removeprefix("the learning rate at step 50 goes from ").split(" to ")
    )
    assert after > 1.5 * before > 0


def test_rate_batch_data_and_version(claimed):
    workdir, found = claimed
    lines = found({"persons": 20, "sha256": "b"}, optim__learning_rate=0.1, train__batch_size=16)
    assert "train.batch_size goes from 8 to 16" in lines
    assert any(line.startswith("optim.learning_rate goes from ") and line.endswith(" to 0.1") for line in lines)
    assert any(line.startswith("the learning rate at step 50 goes from ") for line in lines)
    assert "the training data differ: 21 persons before, 20 now" in lines
    assert found({"persons": 21, "sha256": "b"}) == ["the training data differ: other content"]
    record_start(str(workdir), 49, DATA | {"evaluated": "c"})
    assert found(DATA) == found(DATA | {"evaluated": "c"}) == []
    (line,) = found(DATA | {"evaluated": "d"})
    assert line.startswith("the evaluated data differ: ")
    stored = files.read_json(workdir / "config.json")
    files.write_json(workdir / "config.json", stored | {"version": "0.0.9"})
    assert [line for line in found() if "version 0.0.9" in line]


def test_a_start_that_saved_nothing_is_not_what_trained_the_checkpoint(claimed, miniature):
    """Its recipe lies in config.json, but the checkpoint at 50 is of the start before, the one at 60 of itself."""
    workdir, recipe = str(claimed[0]), miniature(train__steps=100, optim__learning_rate=0.1, train__batch_size=16)
    files.write_json(claimed[0] / "run.json", {"starts": []})
    record_start(workdir, 0, DATA, miniature(train__steps=100))
    for step in (50, 50):
        record_start(workdir, step, DATA | {"sha256": "b"}, recipe)
    starts = json.loads((claimed[0] / "run.json").read_text())["starts"]
    assert [one["step"] for one in starts] == [0, 50], "one for each that saved something, and the last"
    claim_workdir(recipe, workdir)
    lines = changes(recipe, workdir, 50, DATA | {"sha256": "b"})
    assert "train.batch_size goes from 8 to 16" in lines and "the training data differ: other content" in lines
    assert changes(recipe, workdir, 60, DATA | {"sha256": "b"}) == []
    assert len(changes(miniature(train__steps=100), workdir, 50, DATA)) == 0


def test_workdirs_of_earlier_versions_say_nothing_of_data(claimed):
    record_start(str(claimed[0]), 25)
    assert claimed[1]({"persons": 3, "sha256": "c"}) == []


def test_the_fingerprint_is_of_the_persons(miniature):
    def of(**fields):
        return fingerprint(make_source(miniature(**fields), "train", training=True))

    assert of() == of(data__workers=2) != of(data__synthetic__seed=1)
    assert of(data__synthetic__train_images=7) != of()


def test_another_recipe_on_another_host_is_named(miniature, monkeypatch):
    """Each process sees the other's sums; here the other was given another rate and seed."""
    recipes = [miniature(), miniature(optim__learning_rate=0.5, seed=3)]
    sums = []

    def gather(rows):
        sums.append(rows)
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(multihost, "gather", gather)
        patch.setattr(multihost, "from_first", lambda function: function())
        for recipe in recipes:
            multihost.check_hosts(recipe, "run")
        one, other = sums[1], sums[3]
        replies = iter([sums[0].repeat(2, 0), jax.numpy.concatenate([one, other])])
        patch.setattr(multihost, "gather", lambda rows: jax.device_get(next(replies)))
        with pytest.raises(ValueError) as error:
            multihost.check_hosts(recipes[0], "run")
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and "optim.learning_rate: " in lines[1] + lines[2]
    assert any(line.startswith("  seed: 0 on process 0; not the same on process [1]") for line in lines)
    multihost.check_hosts(recipes[0], "run")  # alone there is nothing to compare


NOISY = """
import logging, warnings
from absl import flags
from absl import logging as absl_logging
from dpose_jax.runtime import app
import dpose_jax.data.watchdog as ours

def main():
    logging.getLogger("elsewhere").warning("of a library")
    absl_logging.warning("of orbax")
    warnings.warn("of grain")
    exec(compile("logging.warning('of ours')", ours.__file__, "exec"), {"logging": absl_logging})
    for name in ("orbax", "asyncio"):
        exec(compile(f"logging.error('raised by {name}')", f"/lib/{name}/a.py", "exec"), {"logging": absl_logging})
    absl_logging.error("an error of others")
    for error in (RuntimeError("Event loop is closed"), ValueError("ignored of others")):
        type("Dies", (), {"__del__": lambda self: (_ for _ in ()).throw(error)})()
    print("done")

app.run(main)
"""


@pytest.mark.parametrize(("flags", "others"), [([], False), (["--verbosity=1"], True)])
def test_only_our_lines_are_printed(flags, others):
    command = [sys.executable, "-c", NOISY, *flags]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.stdout == "done\n" and "of ours" in ended.stderr and "an error of others" in ended.stderr
    assert "ignored of others" in ended.stderr
    for text in ("of a library", "of orbax", "of grain", "raised by orbax", "raised by asyncio", "loop is closed"):
        assert (text in ended.stderr) == others, ended.stderr


def test_a_damaged_program_is_stored_anew(tmp_path, monkeypatch, capsys):
    """JAX warns of one that it cannot read, and does not overwrite it."""
    for name in ("jit_step-12-cache", "jit_step_2-34-cache"):
        (tmp_path / name).write_bytes(b"cut")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        cpu.mend_programs(str(tmp_path))
        warnings.warn("Error reading persistent compilation cache entry for 'jit_step': ValueError: cut", stacklevel=1)
    assert os.listdir(tmp_path) == ["jit_step_2-34-cache"]
    assert "the stored program 'jit_step' is damaged" in capsys.readouterr().out
