"""metrics.jsonl and TensorBoard after crashes, on a full disk, in a workdir that goes away."""

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from etils import epath

from dpose_jax.training import board
from dpose_jax.training.metrics import MetricsWriter


def read(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def points(workdir):
    """(tag, step, value) of all files in TensorBoard's order: by name."""
    paths = sorted((workdir / "tensorboard").iterdir())
    events = [event for path in paths for _, event in board._records(path.read_bytes())]
    return [(v.tag, e.step, v.simple_value) for e in events for v in e.summary.value]


@pytest.mark.parametrize(
    ("tail", "kept", "aside"),
    [
        (b'\0\0\0{"step": 2}\n', [2], []),
        (b'{"step": 2}\0\0\0\0', [2], []),
        (b'{"step": 2}{"step": 3}\n', [2, 3], []),
        (b'{"note": "lowered"}\n{"step": 2}\n', [2], [b'{"note": "lowered"}']),
        (b'{"step": "2"}\n[2]\n5\n\xff\xfe\n\n', [], [b'{"step": "2"}', b"[2]", b"5", b"\xff\xfe"]),
        (b"[" * 100_000 + b"\n", [], [b"[" * 100_000]),
        (b'{"step": 2, "lo', [], []),
        (b'{"st', [], []),
        (b"<html>disk quota exceeded</html>", [], [b"<html>disk quota exceeded</html>"]),
        (b'{"step": 2}' * 50_000 + b"\n", [2] * 50_000, []),
        (b'{"step": 2}\n{"step": 99}\n', [2], []),
        (b'{"step": 2}{"st\n', [2], [b'{"step": 2}{"st']),
    ],
)
def test_any_tail_is_mended_or_set_aside(tail, kept, aside, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + tail)
    writer = MetricsWriter(str(tmp_path), 50)
    writer.write(51, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in read(tmp_path)] == [1, *kept, 51]
    found = tmp_path / "metrics_set_aside.txt"
    assert (found.read_bytes().splitlines() if found.exists() else []) == aside
    assert capsys.readouterr().out.count(f"{path}, line ") == len(aside)
    MetricsWriter(str(tmp_path), 51).close()
    assert not capsys.readouterr().out  # named once


def test_a_fifo_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match=r"metrics\.jsonl: is no regular file"):
        MetricsWriter(str(tmp_path), 0)


def test_tensorboard_keeps_every_point_whatever_the_clock_and_the_crash(tmp_path):
    """Kills, a file that is cut short, and a clock that goes back: each step that counts once, in order."""
    for start, name in ((0, "9"), (3, "5"), (5, "1")):
        writer = MetricsWriter(str(tmp_path), start)
        for step in range(start + 1, start + 5):
            writer.write(step, {"loss": float(start), "AP": 0.5})
        # No `close`, as after a kill; the file's name is the clock.
        (path,) = (p for p in (tmp_path / "tensorboard").iterdir() if p.name != board.MENDED_FILE)
        moved = path.with_name(f"events.out.tfevents.{name}.host")
        path.rename(moved)
        moved.write_bytes(moved.read_bytes() + b"\x20\0\0\0\0\0\0\0cut")
    MetricsWriter(str(tmp_path), 9).close()
    losses = [(step, value) for tag, step, value in points(tmp_path) if tag == "loss/all"]
    assert losses == [(1, 0), (2, 0), (3, 0), (4, 3), (5, 3), (6, 5), (7, 5), (8, 5), (9, 5)]
    assert len(points(tmp_path)) == 18
    first = sorted((tmp_path / "tensorboard").iterdir())[0]
    assert next(board._records(first.read_bytes()))[1].file_version == "brain.Event:2"


def test_mending_twice_changes_nothing(tmp_path):
    """A kill may come between the mended file and the deletion of those that it replaces."""
    writer = MetricsWriter(str(tmp_path), 0)
    writer.write(1, {"loss": 1.0})
    folder = tmp_path / "tensorboard"
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    board._mend(epath.Path(folder), 1)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    board._mend(epath.Path(folder), 1)
    assert points(tmp_path) == [("loss/all", 1, 1.0)]


def test_the_board_shows_the_loss_first_and_pictures(tmp_path):
    writer = MetricsWriter(str(tmp_path), 0)
    writer.write(1, {"loss": 1.0, "loss_coarse": 0.5, "grad_norm": 2.0, "AP": 0.5, "bad_records": 0})
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    writer.show(1, picture)
    writer.close()
    MetricsWriter(str(tmp_path), 1).close()  # a resumed run keeps them
    assert sorted({tag for tag, *_ in points(tmp_path)}) == sorted(
        ["loss/all", "loss/coarse", "predictions and ground truth", "quality/AP"]
        + ["training/bad_records", "training/grad_norm"]
    )
    assert min(tag for tag, *_ in points(tmp_path)) == "loss/all"
    first = sorted((tmp_path / "tensorboard").iterdir())[0].read_bytes()
    (image,) = (v.image for _, e in board._records(first) for v in e.summary.value if v.HasField("image"))
    assert (image.height, image.width, image.colorspace) == (5, 7, 3)
    read_back = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(read_back, picture)


# A limit on the size of files stands in for the disk. SIGXFSZ is ignored by Python, so a write raises.
FULL = """
import resource, sys
from dpose_jax.training.metrics import MetricsWriter
writer = MetricsWriter(sys.argv[1], 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
for step in range(1, 10_000):
    writer.write(step, {"loss": 1.0})
"""


@pytest.mark.parametrize("limit", [100, 101, 900])
def test_a_full_disk_ends_the_run_at_once(limit, tmp_path):
    """In metrics.jsonl or in TensorBoard's file: the error comes out of `write`, and names the file."""
    command = [sys.executable, "-c", FULL, str(tmp_path), str(limit)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert f"OSError: {tmp_path}/metrics.jsonl: " in ended.stderr and "too large" in ended.stderr
    MetricsWriter(str(tmp_path), 10_000).close()
    assert [line["step"] for line in read(tmp_path)] == list(range(1, len(read(tmp_path)) + 1))


@pytest.mark.parametrize("lost", [shutil.rmtree, lambda path: path.rename(f"{path}_elsewhere")])
def test_a_workdir_that_goes_away_ends_the_run(lost, tmp_path):
    workdir = tmp_path / "run"
    writer = MetricsWriter(str(workdir), 0)
    writer.write(1, {"loss": 1.0})
    lost(workdir)
    with pytest.raises(OSError, match=rf"{workdir}/metrics\.jsonl: deleted or moved while the run was going on"):
        writer.write(2, {"loss": 1.0})
