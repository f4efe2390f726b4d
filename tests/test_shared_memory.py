"""Little shared memory, as in containers: nothing is lost, and the program says what to do."""

import shutil
import sys
import types

import pytest
from absl import logging

from dpose_jax.data.shared_memory import smallest_shared

KIB, BATCH = 1024, 128 * 256 * 192 * 3


def give(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=free))


def test_enough_of_it_is_used(monkeypatch):
    give(monkeypatch, 1 << 30)
    # An image of the smallest batch is shared, what is beside it in a batch of thousands is not.
    assert 4096 * 4 * 2 <= smallest_shared(2, BATCH) <= 64 * 64 * 3 * 8


def test_with_dockers_64_mb_nothing_is_shared_and_a_line_says_so(monkeypatch):
    give(monkeypatch, 64 << 20)
    said = []
    monkeypatch.setattr(logging, "log_first_n", lambda level, text, times, *values: said.append(text % values))
    assert smallest_shared(2, BATCH) == sys.maxsize and smallest_shared(2, 64 * 64 * 3) < sys.maxsize
    (line,) = said
    for part in ("/dev/shm: 64 MiB", "data.workers=2", "pipes", "--shm-size=1g", "data.workers=0"):
        assert part in line


def test_a_folder_that_is_missing_or_read_only_is_named(monkeypatch):
    monkeypatch.setattr("dpose_jax.data.shared_memory.FOLDER", "/proc/nowhere")
    with pytest.raises(OSError, match=r"^/proc/nowhere: is missing or cannot be written, .*data\.workers=0 needs none"):
        smallest_shared(2, BATCH)


def test_none_at_all_is_an_error_before_any_worker(monkeypatch):
    give(monkeypatch, 128 * KIB)
    with pytest.raises(OSError, match=r"/dev/shm: 128 KiB .*free, data\.workers=2 needs 384 KiB; .*data\.workers=0"):
        smallest_shared(2, BATCH)
