import contextlib
import http.server
import json
import os
import pathlib
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from hrnet_weights import stored_weights
from safetensors.numpy import save, save_file

from dpose_jax.models.weights.hub import locate, read

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
COMMIT = "0123456789" * 4


def test_safetensors(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.float16)}
    save_file(tensors, tmp_path / "any name")
    found = read(str(tmp_path / "any name")).tensors
    assert found.keys() == tensors.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, tensors[name])
    whole = save(tensors)
    for length in (9, 20, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut: broken or cut short"):
            read(str(tmp_path / "cut"))
    for header in ('{"a":{"dtype":"F8_E5M2","shape":[4],', '{"a":{"dtype":"F32","shape":[%s1],' % ("1," * 99)):
        header = header.encode() + b'"data_offsets":[0,4]}}'
        (tmp_path / "odd").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with pytest.raises(ValueError, match="odd: holds arrays that numpy has not"):
            read(str(tmp_path / "odd"))


def test_the_content_and_not_the_name_says_what_a_file_is(tmp_path):
    for name in ("zip", "stream"):
        (tmp_path / f"{name}.safetensors").write_bytes((FIXTURES / f"{name}.pth").read_bytes())
        assert "parameter" in read(str(tmp_path / f"{name}.safetensors")).tensors
    for content in (b"", b"no weights at all", (FIXTURES / "torch_files.npz").read_bytes()):
        (tmp_path / "other.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"other\.pth: (no PyTorch file|a zip, but not of torch\.save)"):
            read(str(tmp_path / "other.pth"))


def test_a_missing_file_says_where_weights_are(tmp_path):
    path = str(tmp_path / "none.pth")
    with pytest.raises(
        FileNotFoundError, match=r"model\.pretrained='.*none\.pth': no such file.*hf:timm/hrnet_w48.ms_in1k"
    ):
        locate(path, "w48")
    with pytest.raises(FileNotFoundError) as caught:
        locate(path, "tiny")
    assert "hf:" not in str(caught.value) and "--config.model.pretrained=none" in str(caught.value)


def test_sources_that_break_a_rule():
    with pytest.raises(ValueError, match=r"nobody publishes weights of model\.backbone='tiny'.*pretrained=none"):
        locate("imagenet", "tiny")
    for source in ("hf:", "hf:timm", "hf:/repo"):
        with pytest.raises(ValueError, match=f"model.pretrained='{source}': must be hf:OWNER/REPO"):
            locate(source, "w32")


class Hub(http.server.BaseHTTPRequestHandler):
    """A stand-in for the Hugging Face Hub on this machine: `files` by OWNER/REPO/FILE."""

    files: dict = {}
    asked: list = []

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        self.asked.append((self.command, self.path))
        content = self.files.get(self.path.strip("/").replace("/resolve/main/", "/"))
        found = content is not None
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(content) if found else 0))
        if found:
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", COMMIT)
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if body and found:
            self.wfile.write(content)

    def log_message(self, *unused):
        pass


@contextlib.contextmanager
def serve(files):
    """A hub with these files; gives its address."""
    Hub.files, Hub.asked = files, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def hub(tmp_path):
    """Runs `locate` in a new process, which reads where the hub is when it imports its library; with what was asked."""
    pytest.importorskip("huggingface_hub", reason='the hub extra is not installed: pip install -e ".[hub]"')

    def run(*sources, **environment):
        code = (
            "import sys, json; from dpose_jax.models.weights.hub import locate\n"
            "for source in sys.argv[1:]:\n"
            "    try: print(json.dumps(locate(source, 'w18_small')))\n"
            "    except Exception as error: print(json.dumps([type(error).__name__, str(error)]))\n"
        )
        home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": address}
        settings = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", code, *sources],
            env=os.environ | home | settings | environment,
            cwd=pathlib.Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with serve(
        {"timm/hrnet_w18_small.ms_in1k/model.safetensors": save(stored_weights("w18_small", "pose"))}
    ) as address:
        yield run


def test_the_hub_is_asked_once_and_only_when_named(hub):
    """Against a server of our own: not asked by `imagenet`, once by `hf:`, then the cache serves offline."""
    weights = "hf:timm/hrnet_w18_small.ms_in1k"
    before, path, cached, missing = hub("imagenet", weights, "imagenet", f"{weights}/other.pth")
    assert before[0] == "FileNotFoundError" and f"--config.model.pretrained={weights}" in before[1]
    assert COMMIT in path and cached == path
    assert missing[0] == "ConnectionError" and "gives no other.pth" in missing[1]
    downloads = [asked for asked in Hub.asked if asked[0] == "GET" and asked[1].endswith("model.safetensors")]
    assert len(downloads) == 1 and Hub.asked.index(downloads[0]) <= 1
    np.testing.assert_array_equal(
        read(path).tensors["conv1.weight"], stored_weights("w18_small", "pose")["conv1.weight"]
    )
    Hub.asked.clear()
    assert hub(weights, "imagenet", HF_HUB_OFFLINE="1") == [path, path]
    assert Hub.asked == []


def test_a_hub_that_does_not_answer(hub):
    [error] = hub("hf:timm/hrnet_w18_small.ms_in1k", HF_HUB_OFFLINE="1")
    assert error[0] == "ConnectionError"
    assert error[1].startswith(
        "model.pretrained='hf:timm/hrnet_w18_small.ms_in1k': timm/hrnet_w18_small.ms_in1k gives no"
    )
    assert error[1].endswith(
        "the Hugging Face Hub does not answer, there may be no network; "
        "--config.model.pretrained=FILE takes one that you have"
    )


def test_without_the_hub_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r'needs the hub extra: pip install -e "\.\[hub\]"'):
        locate("hf:timm/hrnet_w32.ms_in1k", "w32")
    with pytest.raises(FileNotFoundError, match=r"pretrained=hf:timm/hrnet_w32\.ms_in1k downloads them once"):
        locate("imagenet", "w32")
