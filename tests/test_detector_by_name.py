"""A detector by name: what is downloaded, checked and said, against a stand-in for PyTorch and torchvision."""

import hashlib
import re
import shutil
import sys
import types
import urllib.error

import numpy as np
import pytest
from safetensors.numpy import save_file

from dpose_jax.inference import detector
from dpose_jax.inference.detector import DETECTORS, Detector

STATE = {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


class Model:
    """Takes any weights, and finds nobody."""

    def eval(self):
        return self

    def to(self, device):
        return self

    def load_state_dict(self, state):
        self.state = state


class StandIn:
    """A server with the weights of every model, under torchvision's kind of name, and its log."""

    def __init__(self, folder):
        self.folder, self.asked, self.online = folder, [], True
        save_file(STATE, folder / "served")
        self.digest = hashlib.sha256((folder / "served").read_bytes()).hexdigest()

    def weights(self, model):
        url = f"https://example.invalid/models/{model}_coco-{self.digest[:8]}.pth"
        return types.SimpleNamespace(DEFAULT=types.SimpleNamespace(url=url))

    def download(self, url, path, progress):
        self.asked.append(url)
        if not self.online:
            raise urllib.error.URLError("no route")
        shutil.copy(self.folder / "served", path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = StandIn(tmp_path)
    hub = types.SimpleNamespace(get_dir=lambda: str(tmp_path / "cache"), download_url_to_file=server.download)
    cuda = types.SimpleNamespace(is_available=lambda: False)
    models = types.ModuleType("torchvision.models")
    models.get_model, models.get_model_weights = lambda name, **_: Model(), server.weights
    for name, module in (
        ("torch", types.SimpleNamespace(hub=hub, cuda=cuda, tensor=np.asarray)),
        ("torchvision", types.SimpleNamespace(models=models)),
        ("torchvision.models", models),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return server


@pytest.mark.parametrize("name", ["ssdlite", "ssdlite320_mobilenet_v3_large"])
def test_a_name_is_downloaded_once_and_works_offline(server, name, capsys):
    np.testing.assert_array_equal(Detector(name)._model.state["layer.weight"], STATE["layer.weight"])
    told = capsys.readouterr().out
    assert f"detector '{name}': downloading 13 MB from {server.asked[0]}, once: " in told
    assert "ssdlite320_mobilenet_v3_large, trained on COCO 2017, box AP 21.3 by its authors" in told
    server.online = False
    assert not Detector(name).takes_whole and len(server.asked) == 1
    assert "in the cache" in capsys.readouterr().out


def test_another_file_is_refused(server):
    """Also one of the cache, whoever wrote it."""
    Detector("fcos")
    (path,) = (server.folder / "cache" / "checkpoints").iterdir()
    path.write_bytes(path.read_bytes() + b" ")
    expected = rf"detector 'fcos': {re.escape(str(path))} has SHA-256 [0-9a-f]{{64}}, expected {server.digest[:8]}… of "
    with pytest.raises(ValueError, match=expected):
        Detector("fcos")


def test_no_network(server):
    server.online = False
    with pytest.raises(
        ConnectionError, match=r"detector 'ssd': https:.*ssd300_vgg16.* gives no file: .*no route.*FILE"
    ):
        Detector("ssd")
    assert list((server.folder / "cache" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("source", "model", "message"),
    [
        ("ssdlit", None, r"detector='ssdlit': no such file; names are fasterrcnn, .*; did you mean 'ssdlite'\?"),
        ("ssdlite", "fcos_resnet50_fpn", r"detector_model='fcos_resnet50_fpn': is for --detector=FILE; 'ssdlite'"),
        ("w.pth", "yolo", "detector_model='yolo': must be one of fasterrcnn_resnet50_fpn_v2, "),
    ],
)
def test_what_is_no_name(server, source, model, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Detector(source, model)
    assert server.asked == []


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ValueError, match=r"detector='fcos': needs the detector extra: pip install -e \"\.\[detector\]\""
    ):
        Detector("fcos")


def test_names_are_unique_and_the_most_accurate_comes_first():
    assert len({*DETECTORS, *detector.MODELS}) == 2 * len(DETECTORS)
    assert max(DETECTORS.values(), key=lambda each: each.ap) == next(iter(DETECTORS.values()))
