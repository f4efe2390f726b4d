"""Damaged checkpoints: noticed, named, passed over."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from dpose_jax.workdir.checkpoints import Checkpoints
from tests.test_resume import Position


@pytest.fixture(scope="module")
def tree():
    return {"w": jax.numpy.arange(20_000, dtype=np.float32), "step": jax.numpy.int32(3)}


@pytest.fixture(scope="module")
def written(tree, tmp_path_factory):
    """A workdir with checkpoints of steps 4 and 6."""
    workdir = tmp_path_factory.mktemp("written")
    with Checkpoints(str(workdir), keep=2) as checkpoints:
        for step in (4, 6):
            checkpoints.save(step, {name: leaf + step for name, leaf in tree.items()}, Position(step))
    return workdir


@pytest.fixture
def workdir(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def flip(path: pathlib.Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def without_checksums(workdir) -> None:
    """As an earlier version wrote them."""
    for path in workdir.rglob("checksums.json"):
        path.unlink()
    for path in workdir.rglob("data/metadata"):
        content = json.loads(path.read_text())
        del content["step"]
        path.write_text(json.dumps(content))


def restored(workdir, tree):
    with Checkpoints(str(workdir), read_only=True) as checkpoints:
        position = Position()
        state = checkpoints.restore(tree, position)
        return int(state["w"][0]), position.examples


def test_every_flipped_bit_is_noticed(workdir, tree, capsys):
    """In any file of state and data position, one bit at a time: the step before is taken, and the file is named."""
    newest, rng = workdir / "checkpoints" / "6", np.random.default_rng(0)
    paths = [p for item in ("state", "data") for p in sorted((newest / item).rglob("*")) if p.is_file()]
    paths = [path for path in paths if path.name != "commit_success.txt"]
    assert len(paths) >= 8
    for path in paths:
        content = path.read_bytes()
        flip(path, int(rng.integers(8 * len(content))))
        assert restored(workdir, tree) == (4, 4)
        named = path.parent.name + "/" if path.name == "checksums.json" else path.relative_to(newest)
        assert f"passed over: {newest}: {named}" in capsys.readouterr().out
        path.write_bytes(content)
    assert restored(workdir, tree) == (6, 6) and not capsys.readouterr().out


def remove_state(folder):
    shutil.rmtree(folder / "state")


def cut_arrays(folder):
    max((folder / "state").rglob("*"), key=lambda path: path.stat().st_size * path.is_file()).write_bytes(b"")


def cut_manifest(folder):
    (folder / "state" / "manifest.ocdbt").write_bytes(b"")


def cut_position(folder):
    (folder / "data" / "metadata").write_bytes(b'{"exam')


def copy_item(workdir, name):
    """A whole folder of step 4 in the place of that of step 6, checksums included."""
    shutil.rmtree(workdir / "checkpoints" / "6" / name)
    shutil.copytree(workdir / "checkpoints" / "4" / name, workdir / "checkpoints" / "6" / name)


def rename(workdir):
    os.rename(workdir / "checkpoints" / "6", workdir / "checkpoints" / "9")


def link_to_nothing(workdir):
    path = workdir / "checkpoints" / "6" / "state" / "_METADATA"
    path.unlink()
    path.symlink_to("/nonexistent")


def drop_all_checksums(workdir):
    """Of a checkpoint of today, with a bit flipped, which without them would be restored silently."""
    for path in (workdir / "checkpoints" / "6").rglob("checksums.json"):
        path.unlink()
    flip(max((workdir / "checkpoints" / "6").rglob("d/*"), key=lambda path: path.stat().st_size), 100_000)


def checksums_folder(workdir):
    path = workdir / "checkpoints" / "6" / "state" / "checksums.json"
    path.unlink()
    path.mkdir()


def pipe(workdir):
    os.mkfifo(workdir / "checkpoints" / "6" / "state" / "pipe")


def cut_metadata(workdir):
    (workdir / "checkpoints" / "6" / "_CHECKPOINT_METADATA").write_bytes(b'{"item')


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda workdir: copy_item(workdir, "state"), "6: state/ is of step 4"),
        (lambda workdir: copy_item(workdir, "data"), "6: data/ is of step 4"),
        (rename, "9: state/ is of step 6"),
        (link_to_nothing, "6: state/_METADATA is damaged"),
        (drop_all_checksums, "6: checksums.json is missing"),
        (checksums_folder, "6: state/checksums.json is missing"),
        (pipe, "6: state/pipe is not of this checkpoint"),
        (cut_metadata, "6: 6/_CHECKPOINT_METADATA is damaged"),
    ],
)
def test_what_belongs_to_another_step_or_is_no_file_is_passed_over(harm, text, workdir, tree, capfd):
    harm(workdir)
    assert restored(workdir, tree) == (4, 4)
    told = capfd.readouterr()
    assert f"passed over: {workdir}/checkpoints/{text}" in told.out and not told.err


def test_what_is_beside_a_checkpoint_does_no_harm(workdir, tree, capsys):
    """Files of a file browser or NFS, and folders with names that are no steps."""
    for name in ("6/state/.DS_Store", "6/state/ocdbt.process_0/.nfs01", "6/._data", "latest"):
        (workdir / "checkpoints" / name).write_bytes(b"x")
    shutil.copytree(workdir / "checkpoints" / "6", workdir / "checkpoints" / "0007")
    assert restored(workdir, tree) == (6, 6) and not capsys.readouterr().out


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("harm", [remove_state, cut_arrays, cut_manifest, cut_position, "empty"])
def test_the_newest_whole_one_is_taken(harm, checked, workdir, tree, capsys):
    """Also among those of earlier versions, without checksums. Training moves the damaged one away and saves anew."""
    if not checked:
        without_checksums(workdir)
    step = 7 if harm == "empty" else 6
    folder = workdir / "checkpoints" / str(step)
    if harm == "empty":
        folder.mkdir()
    else:
        harm(folder)
    before = (6, 6) if harm == "empty" else (4, 4)
    assert restored(workdir, tree) == before and folder.exists()
    assert f"passed over: {folder}: " in capsys.readouterr().out
    with Checkpoints(str(workdir), keep=2) as checkpoints:
        assert checkpoints.latest == before[0] and not folder.exists()
        checkpoints.save(step, jax.tree.map(lambda x: x + step, tree), Position(step))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and f"moved to {workdir}/damaged/{step}" in out
    assert restored(workdir, tree) == (step, step) and not capsys.readouterr().out


def test_what_a_kill_left_of_a_save_goes_with_the_next_start(workdir, tree):
    left = workdir / "checkpoints" / "8.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "6", left)
    assert restored(workdir, tree) == (6, 6) and left.exists()
    with Checkpoints(str(workdir), keep=2) as checkpoints:
        checkpoints.save(8, jax.tree.map(lambda x: x + 8, tree), Position(8))
    assert not left.exists() and restored(workdir, tree) == (8, 8)


def test_checkpoints_of_earlier_versions_are_read(workdir, tree):
    without_checksums(workdir)
    assert restored(workdir, tree) == (6, 6)


def test_none_whole_is_an_error(workdir):
    for step in (4, 6):
        remove_state(workdir / "checkpoints" / str(step))
    for read_only in (True, False):
        with pytest.raises(ValueError, match=r"(?s)no checkpoint is whole:.*/6: state/ is missing.*/4: state/"):
            Checkpoints(str(workdir), read_only=read_only)
    assert sorted(os.listdir(workdir / "checkpoints")) == ["4", "6"]


def test_a_damaged_best_one_is_named(workdir):
    with Checkpoints(str(workdir), keep=2) as checkpoints:
        checkpoints.add_ap(4, 0.5)
    cut_arrays(workdir / "checkpoints" / "4")
    with Checkpoints(str(workdir), read_only=True) as checkpoints:
        assert checkpoints.find() == 6
        with pytest.raises(ValueError, match=r"checkpoints/4: state/.*; it is the best one, eval\.checkpoint='last'"):
            checkpoints.find("best")


def test_a_damaged_ap_counts_as_none(workdir):
    with Checkpoints(str(workdir), keep=2) as checkpoints:
        checkpoints.add_ap(4, 0.5)
    path = workdir / "checkpoints" / "4" / "metrics" / "metrics"
    assert json.loads(path.read_text()) == {"AP": 0.5}
    for content in ('{"AP": 0.', "[5]", '{"AP": "x"}', '{"AP": NaN}', "\0"):
        path.write_text(content)
        for read_only in (True, False):
            with Checkpoints(str(workdir), keep=2, read_only=read_only) as checkpoints:
                assert (checkpoints.latest, checkpoints.best) == (6, None)
