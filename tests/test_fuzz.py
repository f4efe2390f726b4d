"""Every reader on a few damaged files; tests/fuzz.py tries many."""

import pytest

pytest.importorskip("hypothesis", reason="the extra [test] is not installed")

import damage  # noqa: E402
import fuzz_readers  # noqa: E402

EXAMPLES = {"model.json": 10}  # of which each accepted one builds a network


@pytest.mark.parametrize("name", fuzz_readers.READERS)
def test_a_damaged_file_is_read_right_or_named(name, tmp_path):
    damage.try_reader(fuzz_readers.READERS[name], tmp_path, EXAMPLES.get(name, 30))


def test_damaged_records_are_read_right_or_named(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="the extra [records] is not installed")
    for place, reader in enumerate(fuzz_readers.record_readers().values()):
        folder = tmp_path / str(place)
        folder.mkdir()
        damage.try_reader(reader, folder, 8)


def test_what_a_reader_does_wrong_is_noticed(tmp_path):
    def careless(folder):
        if (folder / "number.txt").read_bytes() != b"12345":
            raise ValueError("not what it was")

    with pytest.raises(AssertionError, match="names no file"):
        damage.try_reader(damage.Reader("number.txt", b"12345", careless), tmp_path, 50)

    def greedy(folder):
        return b"1" * (damage.MEMORY << 11 if b"\xff" in (folder / "number.txt").read_bytes() else 1)

    with pytest.raises(AssertionError, match="MiB of memory"):
        damage.try_reader(damage.Reader("number.txt", b"12345", greedy), tmp_path, 200)
