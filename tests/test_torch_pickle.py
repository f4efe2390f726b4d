import collections
import io
import os
import pathlib
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from dpose_jax.models.weights.torch_pickle import STREAM_MAGIC, read_checkpoint

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


class Payload:
    """A pickle that calls a function when a plain unpickler reads it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Global:
    """A name in a pickle, such as torch.FloatStorage where there is no torch."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Pickler(pickle._Pickler):
    """Writes Global and storages as torch.save does."""

    def save(self, value, *unused, **also):
        if isinstance(value, Global):
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        else:
            super().save(value, *unused, **also)

    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None


class Storage:
    def __init__(self, numel, kind="storage", view=(), key="0"):
        self.pid = (kind, Global("torch", "FloatStorage"), key, "cpu", numel, *view)


class Tensor:
    def __init__(self, storage, offset=0, shape=(2,), strides=(1,)):
        self.arguments = storage, offset, shape, strides, False, collections.OrderedDict()

    def __reduce__(self):
        return _rebuild, self.arguments


def _rebuild():
    raise AssertionError("a name, never called")


def dumps(value):
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    name = f"c{__name__}\n_rebuild\n".encode()
    return file.getvalue().replace(name, b"ctorch._utils\n_rebuild_tensor_v2\n")


NUMBERS = np.arange(2, dtype="<f4")


def write_zip(path, value, numbers=NUMBERS, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(value))
        archive.writestr("archive/byteorder", byteorder)
        archive.writestr("archive/data/0", numbers.tobytes(), compression)
    return str(path)


def write_stream(path, value, header=(1001, {"little_endian": True}), keys=None, numbers=NUMBERS):
    stored = ["0"] if b"FloatStorage" in dumps(value) else []
    parts = [STREAM_MAGIC, *header, value, stored if keys is None else keys]
    raw = struct.pack("<q", len(numbers)) + numbers.tobytes()
    path.write_bytes(b"".join(dumps(part) for part in parts) + raw)
    return str(path)


WRITERS = [write_zip, write_stream]


def state_with(payload, depth):
    """A state dict that reads well but for one entry, `depth` containers down in what is beside the weights."""
    value = payload
    for k in range(depth):
        value = [value] if k % 2 else {"more": value}
    return {"state_dict": collections.OrderedDict(weight=Tensor(Storage(2))), "meta": value}


@pytest.mark.parametrize("name", ["zip", "stream"])
def test_reads_what_torch_wrote(name):
    """Every dtype, a view with strides and an offset, an empty tensor, a parameter, mmpose's meta, an optimizer."""
    found = read_checkpoint(str(FIXTURES / f"{name}.pth")).tensors
    with np.load(FIXTURES / "torch_files.npz") as expected:
        assert set(found) == set(expected)
        for key, array in found.items():
            assert array.dtype.name == (key if key not in ("view", "empty", "parameter") else "float32")
            np.testing.assert_array_equal(array.astype(np.float32), expected[key])


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_torch_writes_today(zipped, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the committed files are read all the same")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(net.state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(str(tmp_path / "net.pth")).tensors
    assert list(found) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


@pytest.mark.parametrize("write", WRITERS)
def test_the_tests_own_writers_are_read(write, tmp_path):
    found = read_checkpoint(write(tmp_path / "good.pth", state_with(1, 1))).tensors
    np.testing.assert_array_equal(found["weight"], [0, 1])


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("depth", [0, 1, 40])
@pytest.mark.parametrize("bare", [True, False])
def test_a_malicious_pickle_is_refused_and_not_executed(write, depth, bare, tmp_path):
    marker = tmp_path / "executed"
    payload = Payload(os.system, f"touch {marker}")
    value = payload if bare else state_with(payload, depth)
    path = write(tmp_path / "bad.pth", value)
    with pytest.raises(
        ValueError, match=rf"bad\.pth: refused: it asks for {os.system.__module__}\.system.*nothing was"
    ):
        read_checkpoint(path)
    assert not marker.exists()
    # The payload is real: what an ordinary unpickler would have done.
    pickle.loads(pickle.dumps(payload))
    assert marker.exists()


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (Payload(eval, "1 + 1"), "__builtin__.eval"),
        (Payload(getattr, 1, "real"), "__builtin__.getattr"),
        (Global("torch.hub", "load"), "torch.hub.load"),
        (Global("torch", "load"), "torch.load"),
        (Global("torch._utils", "_rebuild_tensor_v2.__globals__"), "torch._utils._rebuild_tensor_v2.__globals__"),
        (Global("collections", "OrderedDict.__init__.__globals__"), "collections.OrderedDict.__init__"),
        (Global("numpy", "load"), "numpy.load"),
        (Global("dpose_jax.workdir.files", "write_bytes"), "dpose_jax.workdir.files.write_bytes"),
    ],
)
@pytest.mark.parametrize("write", WRITERS)
def test_any_other_name_is_refused(write, payload, name, tmp_path):
    with pytest.raises(ValueError, match=f"asks for {name}".replace(".", r"\.")):
        read_checkpoint(write(tmp_path / "bad.pth", {"state_dict": {"weight": Tensor(Storage(2))}, "x": payload}))


def test_a_stream_is_guarded_in_all_its_pickles(tmp_path):
    marker = tmp_path / "executed"
    payload = Payload(os.system, f"touch {marker}")
    good = {"weight": Tensor(Storage(2))}
    for parts in ({"header": (payload, {})}, {"header": (1001, payload)}, {"keys": [payload]}):
        with pytest.raises(ValueError, match=r"refused: it asks for .*system"):
            read_checkpoint(write_stream(tmp_path / "bad.pth", good, **parts))
    assert not marker.exists()


def test_stand_ins_cannot_be_altered(tmp_path):
    """BUILD sets attributes of what is on the stack: the names that are known must give nothing to set them on."""
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        pickled = (
            b"\x80\x02ctorch._utils\n" + name.encode() + b"\nN}X\x08\x00\x00\x00__call__NsX\x01\x00\x00\x00xNs\x86b."
        )
        with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
        with pytest.raises(ValueError, match="broken"):
            read_checkpoint(str(tmp_path / "bad.pth"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "no state dict"),
        ({"epoch": 3, "model": 4}, r"no state dict.*\['epoch', 'model'\]"),
        ({"weight": Tensor(Storage(2)), "epoch": 3}, r"no tensors: \['epoch'\]"),
        ({"weight": Tensor(Storage(2), offset=1)}, r"shape \(2,\) reaches outside of its 2 numbers"),
        ({"weight": Tensor(Storage(2), strides=(2,))}, "reaches outside"),
        ({"weight": Tensor(Storage(2), shape=(10**9,), strides=(0,))}, "reaches outside of its 2 numbers"),
        ({"weight": Tensor(Storage(2), strides=(-1,))}, "not a view of a storage"),
        ({"weight": Tensor(Storage(2), shape=("a",))}, "not a view of a storage"),
        ({"weight": Tensor("storage")}, "not a view of a storage"),
        ({"weight": Tensor(Storage(-2))}, "a storage is described by"),
        ({"weight": Tensor(Storage(2, kind="module"))}, "a storage is described by"),
        ({"weight": Tensor(Storage(2, view=(("0", 0, 2),)))}, "views of storages"),
    ],
)
@pytest.mark.parametrize("write", WRITERS)
def test_what_is_wrong_is_said(write, value, message, tmp_path):
    with pytest.raises(ValueError, match=rf"bad\.pth: .*{message}"):
        read_checkpoint(write(tmp_path / "bad.pth", value))


def test_storages_that_do_not_match(tmp_path):
    good, path = {"weight": Tensor(Storage(2))}, tmp_path / "bad.pth"
    for options, message in [
        ({"numbers": np.zeros(1, "<f4")}, "storage 0 is shorter than its 2 numbers"),
        ({"numbers": np.zeros(10**6, "<f4"), "compression": zipfile.ZIP_DEFLATED}, "compressed"),
        ({"byteorder": b"big"}, "big-endian"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_checkpoint(write_zip(path, good, **options))
    with pytest.raises(ValueError, match="storage 0 holds 3 numbers and not 2"):
        read_checkpoint(write_stream(path, good, numbers=np.zeros(3, "<f4")))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.npy", b"")
    with pytest.raises(ValueError, match="no data.pkl"):
        read_checkpoint(str(path))


@pytest.mark.parametrize("name", ["zip", "stream"])
def test_a_cut_or_damaged_file_is_an_error_that_names_it(name, tmp_path):
    """Or, where the damage lies in numbers, other numbers; never another exception."""
    whole, path = (FIXTURES / f"{name}.pth").read_bytes(), tmp_path / "bad.pth"
    for length in np.linspace(0, len(whole) - 1, 50).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"bad\.pth"):
            read_checkpoint(str(path))
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), 300, replace=False):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :])
        try:
            read_checkpoint(str(path))
        except ValueError as error:
            assert "bad.pth" in str(error)


@pytest.fixture
def bounded():
    """At most 64 MB more than now, of what Python and numpy reserve."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6


LYING = {
    "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "bytes": b"\x80\x03B\xff\xff\xff\x7fab.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"ab.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"ab.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}.",
    # Each tuple is twice the one before; as the key of a dict it is hashed for ever.
    "tuples": b"\x80\x02)q\0" + b"".join(bytes((104, k, 104, k, 134, 113, k + 1)) for k in range(60)) + b"0}h<K\x01s.",
    "doubled": b"\x80\x02)" + b"2\x86" * 60 + b"q\0}h\0K\x01s.",
}


@pytest.mark.parametrize("pickled", LYING.values(), ids=LYING)
@pytest.mark.parametrize("zipped", [True, False])
def test_lengths_that_a_pickle_claims_reserve_nothing(pickled, zipped, bounded, tmp_path):
    path = tmp_path / "bad.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
    else:
        path.write_bytes(b"".join(dumps(part) for part in (STREAM_MAGIC, 1001, {})) + pickled)
    with pytest.raises(ValueError, match=r"bad\.pth: (refused: its memo|refused: it nests tuples|broken or cut)"):
        read_checkpoint(str(path))


def test_names_of_any_length_are_cut(tmp_path):
    for value in ({"k" * 10**6: 1}, {"a": Tensor(Storage(2)), "k" * 10**6: 1}):
        with pytest.raises(ValueError, match="kkkk") as error:
            read_checkpoint(write_zip(tmp_path / "long.pth", value))
        assert len(str(error.value)) < 500


def test_a_deflated_pickle_and_a_storage_of_many_lengths_stay_small(bounded, tmp_path):
    path = tmp_path / "bad.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(ValueError, match="archive/data.pkl is compressed"):
        read_checkpoint(str(path))
    numbers = np.arange(1_000_000, dtype="<f4")
    lengths = range(len(numbers) - 50, len(numbers))
    found = read_checkpoint(
        write_zip(path, {f"w{n}": Tensor(Storage(n), shape=(n,)) for n in lengths}, numbers)
    ).tensors
    assert all(np.array_equal(found[f"w{n}"], numbers[:n]) for n in lengths)
