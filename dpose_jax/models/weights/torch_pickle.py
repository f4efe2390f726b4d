"""Reads the weights in a PyTorch file (`torch.save`) without PyTorch and without executing what is inside it.

Such a file is a pickle, a program that may call any function, beside raw numbers. Here it gets only the names in KNOWN.
Both formats are read: the zip of PyTorch 1.6 and later, and the stream before it, that of HRNet's official weights.
"""

import collections
import functools
import io
import math
import mmap
import os
import pickle
import pickletools
import reprlib
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

DTYPES: dict[str, Any] = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": jnp.bfloat16,
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
ZIP_PREFIX = b"PK\x03\x04"
STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a stream
STREAM_PREFIX = pickle.dumps(STREAM_MAGIC, protocol=2)
_MOST_PARTS = 10**6  # of a tuple
WRAPPER = "state_dict"  # where training checkpoints, mmpose among them, keep the weights


class TorchFile(NamedTuple):
    """What a file holds: tensors by name, and what a checkpoint keeps beside its state dict."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


def read_checkpoint(path: str) -> TorchFile:
    """A state dict, or the one that a checkpoint holds: under `state_dict`, or as its only mapping of tensors alone.

    Raises ValueError, which names the file, if it is refused, is cut short, or holds no state dict.
    """
    with open(path, "rb") as file:
        start = file.read(len(STREAM_PREFIX))
        file.seek(0)
        try:
            if start.startswith(ZIP_PREFIX):
                return _read_zip(file)
            if start == STREAM_PREFIX:
                # Of a mapped file no read reserves more than there is, whatever length the file claims.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    return _read_stream(mapped)
        except _Refused as error:
            raise ValueError(f"{path}: {error}") from None
        # What unpickling broken bytes raises is open-ended; none of it is a fault of ours that should be hidden.
        except Exception as error:
            raise ValueError(f"{path}: broken or cut short: {str(error) or type(error).__name__}") from error
    raise ValueError(f"{path}: no PyTorch file: neither the zip of torch.save nor the stream before it")


class _Refused(ValueError):
    """What is wrong with a file, in words for its user."""


# What a pickle gets below is a string, a tuple or has no attributes: its BUILD instruction can change none of them.
class _Storage(NamedTuple):
    """`numel` numbers under `key` in the file, of which tensors are views."""

    key: str
    dtype: np.dtype
    numel: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, numbers: np.ndarray) -> np.ndarray:
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        # The same numbers as several elements (PyTorch's `expand`) would let a small file become a large array.
        if 0 not in self.shape and (last >= len(numbers) or math.prod(self.shape) > len(numbers)):
            raise _Refused(f"a tensor of shape {self.shape} reaches outside of its {len(numbers)} numbers")
        steps = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps, writeable=False)


def _rebuild_tensor(storage, offset, shape, strides, *unused) -> _Tensor:
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise _Refused("a tensor is not a view of a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Call(NamedTuple):
    function: Callable

    def __call__(self, *arguments):
        return self.function(*arguments)


class _Nothing:
    """Swallows arguments and state."""

    __slots__ = ()

    def __call__(self, *unused):
        return self

    def __setstate__(self, unused):
        pass


KNOWN: dict[str, Any] = {f"torch.{name}": name for name in DTYPES}
# Beside the weights, mmpose's `meta` holds numpy arrays and optimizers hold devices: accepted, and made into nothing.
INERT = ["_codecs.encode", "numpy.dtype", "numpy.ndarray", "torch.Size", "torch.device"]
INERT += [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")]
KNOWN |= dict.fromkeys(INERT, _Nothing())
KNOWN |= {
    "collections.OrderedDict": collections.OrderedDict,
    "torch._utils._rebuild_tensor": _Call(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Call(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Call(lambda data, *unused: data),
}


def _check_steps(file: Any) -> None:
    """Raises _Refused if a pickle numbers its parts otherwise than 0, 1, 2, ..., or has a tuple of 10^6 parts.

    Python reserves room for the memo up to the largest number. The parts of tuples count as often as they occur, inner
    ones too: a dict hashes each, so that sixty tuples, each of twice the one before, would take for ever.
    """
    sizes, memo = list[int](), dict[int, int]()  # of what is on the stack; -1 is a mark
    for count, (step, argument, _) in enumerate(pickletools.genops(file)):
        name, fresh = step.name, 1
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = len(memo) if name == "MEMOIZE" else argument or 0
            if number > count:
                raise _Refused(f"refused: its memo has a part {number} after {count} steps")
            memo[number] = sizes[-1] if sizes else 1
            continue
        if name in ("GET", "BINGET", "LONG_BINGET", "DUP"):
            sizes.append((sizes[-1] if sizes else 1) if name == "DUP" else memo.get(int(argument or 0), 1))
            continue
        taken = 0
        for part in reversed(step.stack_before):
            if part is pickletools.stackslice:
                while sizes and sizes[-1] >= 0:
                    taken += sizes.pop()
            elif sizes:
                taken += max(0, sizes.pop())
        if name.startswith(("TUPLE", "FROZENSET")):
            fresh += taken
        if fresh > _MOST_PARTS:
            raise _Refused(f"refused: it nests tuples to {fresh} parts or more")
        sizes += [-1 if part is pickletools.markobject else fresh for part in step.stack_after]


class _Unpickler(pickle.Unpickler):
    """Gives KNOWN names alone, and keeps the storages that the pickle named, by key."""

    def __init__(self, file: Any):
        """Takes a BytesIO or mmap. Raises _Refused if its next pickle would take memory or time without bound."""
        start = file.tell()
        _check_steps(file)
        file.seek(start)
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in KNOWN:
            return KNOWN[f"{module}.{name}"]
        raise _Refused(
            f"refused: it asks for {module}.{name}, which weights do not need; nothing was executed. From a source "
            "that you trust, save the bare state dict with PyTorch, or as safetensors"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, numel, *view = pid
        if kind != "storage" or storage_type not in DTYPES or type(numel) is not int or numel < 0:
            raise _Refused(f"a storage is described by {reprlib.repr(pid)}")
        if any(part is not None for part in view):
            raise _Refused("storages that are views of storages, of PyTorch before 0.4, are not read")
        self.storages[key] = _Storage(key, np.dtype(DTYPES[storage_type]), numel)
        return self.storages[key]


def _read_zip(file: IO[bytes]) -> TorchFile:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise _Refused("a zip, but not of torch.save: it has no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")

        @functools.cache  # tensors may share a storage, and name it with different lengths and types
        def content(name: str) -> bytes:
            info = archive.getinfo(name)
            # PyTorch never compresses; what is compressed could grow without limit.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > os.fstat(file.fileno()).st_size:
                raise _Refused(f"{name} is compressed or longer than the file")
            return archive.read(info)

        if f"{folder}byteorder" in archive.namelist() and content(f"{folder}byteorder") != b"little":
            raise _Refused("its numbers are big-endian")

        def numbers(storage: _Storage) -> np.ndarray:
            raw = content(f"{folder}data/{storage.key}")
            if len(raw) < storage.numel * storage.dtype.itemsize:
                raise _Refused(f"storage {storage.key} is shorter than its {storage.numel} numbers")
            return np.frombuffer(raw, storage.dtype, storage.numel)

        return _arrays(_Unpickler(io.BytesIO(content(pickles[0]))).load(), numbers)


def _read_stream(file: mmap.mmap) -> TorchFile:
    for _ in range(3):  # magic number, protocol and the writer's type sizes
        _Unpickler(file).load()
    unpickler = _Unpickler(file)
    state = unpickler.load()
    numbers = {}
    for key in _Unpickler(file).load():
        (numel,) = struct.unpack("<q", file.read(8))
        storage = unpickler.storages[key]
        if numel != storage.numel:
            raise _Refused(f"storage {key} holds {numel} numbers and not {storage.numel}")
        numbers[storage] = np.frombuffer(file.read(numel * storage.dtype.itemsize), storage.dtype, numel)
    return _arrays(state, numbers.__getitem__)


def _shown(names: Iterable) -> str:
    return str([name[:80] for name in sorted(map(str, names))[:10]])


def _arrays(state: Any, numbers: Callable[[_Storage], np.ndarray]) -> TorchFile:
    if not isinstance(state, Mapping):
        raise _Refused(f"no state dict: a {type(state).__name__}")
    beside: Mapping = {}
    if not any(isinstance(part, _Tensor) for part in state.values()):
        mappings = {key: part for key, part in state.items() if isinstance(part, Mapping) and part}
        inner = [key for key, part in mappings.items() if all(isinstance(value, _Tensor) for value in part.values())]
        chosen = [WRAPPER] if WRAPPER in mappings else inner
        if len(chosen) != 1:
            found = f"several, under {_shown(inner)}" if inner else _shown(state)
            raise _Refused(f"no state dict: no tensors by name, on top or under one key; its entries are {found}")
        state, beside = state[chosen[0]], {key: part for key, part in state.items() if key != chosen[0]}
    other = [name for name, part in state.items() if not isinstance(part, _Tensor)]
    if other:
        raise _Refused(f"entries of the state dict are no tensors: {_shown(other)}")
    arrays = {str(name): tensor.of(numbers(tensor.storage)) for name, tensor in state.items()}
    return TorchFile(arrays, {str(key): part for key, part in beside.items()})
