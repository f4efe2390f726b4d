"""Videos: time stamps, frames that are shown as long as in the original."""

import struct

import numpy as np
import pytest

from dpose_jax.inference.video import VideoReader, write_video

FPS = 10
SHADES = (20, 60, 100, 140, 180, 220)


def frame(shade):
    return np.full((48, 64, 3), shade, np.uint8)


def constant(path):
    """Six frames at ten a second."""
    with write_video(str(path), FPS) as add:
        for shade in SHADES:
            add(frame(shade), None)
    return path


def variable(path, durations):
    """The same frames, shown for `durations` tenths of a second: the table of frame times in the MP4 is replaced."""
    data = bytearray(constant(path).read_bytes())
    place = data.index(b"stts")
    (scale,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
    entries = b"".join(struct.pack(">II", 1, n * scale // FPS) for n in durations)
    (length,) = struct.unpack_from(">I", data, place - 4)
    table = struct.pack(">I4sII", 16 + len(entries), b"stts", 0, len(durations)) + entries
    assert data.index(b"mdat") < place  # so that no offset to the frames changes
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        at = data.rindex(parent, 0, place) - 4
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + len(table) - length)
    data[place - 4 : place - 4 + length] = table
    path.write_bytes(data.replace(b"edts", b"free"))  # the edit list, which ends the film after the old duration
    return path


def shades_and_times(path):
    reader = VideoReader(str(path))
    return [(min(SHADES, key=lambda shade: abs(shade - pixels.mean())), reader.time) for pixels in reader], reader.fps


def test_frames_have_the_times_of_the_file(tmp_path):
    found, fps = shades_and_times(constant(tmp_path / "a.mp4"))
    assert fps == FPS and [shade for shade, _ in found] == list(SHADES)
    np.testing.assert_allclose([time for _, time in found], np.arange(6) / FPS, atol=1e-3)
    found, _ = shades_and_times(variable(tmp_path / "b.mp4", (1, 5, 2, 10, 1, 1)))
    np.testing.assert_allclose([time for _, time in found], [0, 0.1, 0.6, 0.8, 1.8, 1.9], atol=1e-3)


def test_a_frame_is_repeated_until_the_next_one(tmp_path):
    times, fps = [0, 0.1, 0.6, 0.8, 1.8, 1.9], 10
    with write_video(str(tmp_path / "a.mp4"), fps) as add:
        for shade, until in zip(SHADES, [*times[1:], None], strict=True):
            add(frame(shade), until)
    found, _ = shades_and_times(tmp_path / "a.mp4")
    assert [shade for shade, _ in found] == list(np.repeat(SHADES, [1, 5, 2, 10, 1, 1]))


@pytest.mark.parametrize("until", [1e9, -5.0, 0.0])
def test_wrong_time_stamps_neither_fill_the_disk_nor_lose_a_frame(until, tmp_path, monkeypatch):
    monkeypatch.setattr("dpose_jax.inference.video.MAX_STILL", 0.8)
    with write_video(str(tmp_path / "a.mp4"), FPS) as add:
        add(frame(20), until)
        add(frame(220), None)
    found, _ = shades_and_times(tmp_path / "a.mp4")
    assert [shade for shade, _ in found] == [20] * (8 if until > 1 else 1) + [220]


def test_a_turned_phone_video_is_upright(tmp_path):
    """The rotation of the track, a quarter clockwise, is followed whatever OpenCV's default is."""
    path = constant(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44  # the matrix of version 0
    data[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)
    (first, *_) = VideoReader(str(path))
    assert first.shape == (64, 48, 3)
