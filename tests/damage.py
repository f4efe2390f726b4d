"""Damage to a valid file, and what a reader may do with the damaged one: see tests/fuzz.py."""

import collections
import contextlib
import copy
import dataclasses
import json
import pathlib
import resource
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
from absl import logging
from hypothesis import strategies as st

Read = Callable[[pathlib.Path], Any]
MEMORY = 512 << 10  # KiB by which no file may grow the process
DIGITS, DEEP = "@digits@", "@deep@"  # text that no JSON writer gives: an integer of 5,000 digits, 100,000 brackets
EXTREMES = [None, True, False, 0, 1, -1, 2, 5, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**400, -(10**30), 0.5, -0.0]
EXTREMES += [1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf"), "", "0", "1", "text", "../x", "a/b"]
EXTREMES += ["\0", "\ud800", "x" * 300, "1e5", [], {}, [1], [[]], [None], {"id": 1}, [[[[[5]]]]], DIGITS, DEEP]
BYTES = (b"\0", b"\xff", b"\xff\xff\xff\x7f", b"\0\0\x75\x30", b"\xff" * 8, b"\n", b"{", b'"', b"\xef\xbb\xbf")


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader, and a file that it accepts: JSON values or bytes. `prepare` makes what lies beside it."""

    file: str  # in a folder of its own
    content: Any
    read: Read  # raises AssertionError if what the reader gives is wrong
    prepare: Read = lambda folder: None
    encode: Callable[[bytes], bytes] = bytes  # of the (damaged) bytes, into the file

    def damaged(self) -> st.SearchStrategy[bytes]:
        """Files with up to four damages."""
        if isinstance(self.content, bytes):
            return _damaged_bytes(self.content).map(self.encode)
        values = _damaged_json(self.content)
        return st.one_of(values, values, values, _damaged_bytes(_json(self.content))).map(self.encode)

    def check(self, folder: pathlib.Path, data: bytes) -> str:
        """Writes the file and reads it; returns the error, or nothing where it is accepted."""
        path, text = folder / self.file, ""
        path.write_bytes(data)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forgets the peak
        before = _memory("VmRSS")
        try:
            self.read(folder)
        except (ValueError, OSError) as error:
            text = str(error)
            is_named = any(str(file) in text for file in folder.rglob("*") if file.is_file())
            assert is_named, f"names no file: {type(error).__name__}: {text[:300]}"
            assert len(text) < 3000, f"{len(text)} characters: {text[:300]}"
        grown = _memory("VmHWM") - before
        assert grown < MEMORY, f"{len(data)} bytes took {grown >> 10} MiB of memory"
        return text


def _memory(line: str) -> int:
    """KiB of this process."""
    with open("/proc/self/status") as file:
        return next(int(text.split()[1]) for text in file if text.startswith(line))


@contextlib.contextmanager
def _limited(size: int) -> Iterator[None]:
    """Lets an allocation far beyond the bound fail, so that the machine does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, ((_memory("VmSize") << 10) + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _json(value: Any) -> bytes:
    text = json.dumps(value)
    return text.replace(f'"{DIGITS}"', "9" * 5000).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).encode()


@st.composite
def _damaged_json(draw, content: Any) -> bytes:
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(content))
        if not places:
            break
        inside, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(("replace", "replace", "replace", "delete", "repeat", "rename", "other")))
        if kind == "delete":
            del inside[key]
        elif kind == "repeat" and isinstance(inside, list):
            inside.insert(key, copy.deepcopy(inside[key]))
        elif kind == "rename" and isinstance(inside, dict):
            inside[draw(st.sampled_from(("", "x", "id", "keypoints", "name")))] = inside.pop(key)
        elif kind == "other":  # a value from elsewhere in the file
            other, name = places[draw(st.integers(0, len(places) - 1))]
            inside[key] = copy.deepcopy(other[name])
        else:
            inside[key] = copy.deepcopy(draw(st.sampled_from(EXTREMES)))
    return _json(draw(st.sampled_from(EXTREMES)) if draw(st.integers(0, 99)) == 99 else content)


def _places(value: Any):
    """Every (list or dict, index or key) inside."""
    for key in range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ():
        yield value, key
        yield from _places(value[key])


@st.composite
def _damaged_bytes(draw, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.one_of(st.integers(0, len(data)), st.integers(0, min(200, len(data)))))
        kind = draw(st.sampled_from(("bit", "bytes", "bytes", "cut", "drop", "repeat")))
        if kind == "bit" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + draw(st.integers(1, 40))]
        elif kind == "repeat":
            data[place:place] = data[place : place + draw(st.integers(1, 40))]
        else:
            new = draw(st.one_of(st.sampled_from(BYTES), st.binary(min_size=1, max_size=8)))
            data[place : place + len(new)] = new
    return bytes(data)


def try_reader(reader: Reader, folder: pathlib.Path, examples: int, seed: int = 0) -> collections.Counter:
    """Checks so many damaged files; returns how many were read and refused, or AssertionError with a small one."""
    logging.set_verbosity(logging.FATAL)
    reader.prepare(folder)
    encoded = reader.content if isinstance(reader.content, bytes) else _json(reader.content)
    refused = reader.check(folder, reader.encode(encoded))
    assert not refused, f"the undamaged file: {refused}"
    counts: collections.Counter = collections.Counter()

    slow = list(hypothesis.HealthCheck)  # readers are slower than what hypothesis is made for

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=examples, deadline=None, database=None, suppress_health_check=slow)
    @hypothesis.given(reader.damaged())
    def run(data: bytes) -> None:
        counts["refused" if reader.check(folder, data) else "read"] += 1

    with _limited(3 << 30), contextlib.redirect_stdout(None):  # TFDS prints that it misses TensorFlow
        run()
    return counts
