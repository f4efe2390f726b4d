"""Buckets that cannot be reached, and packages that are missing: one line, soon, with the extra's name."""

import importlib.util
import socket
import sys

import pytest

import benchmarks
from dpose_jax.workdir import files
from dpose_jax.workdir.checkpoints import check_workdir


@pytest.fixture
def found(monkeypatch):
    """Whether gcsfs is installed: an entry that a test may change. No proxy and no other server are set."""
    installed = {"gcsfs": True, "tensorflow": False}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed[name] or None)
    for name in ("STORAGE_EMULATOR_HOST", "FSSPEC_GCS_ENDPOINT_URL", *("HTTPS_PROXY", "ALL_PROXY")):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    files.check_google_storage.cache_clear()
    yield installed
    files.check_google_storage.cache_clear()


def unreachable(address, timeout):
    assert timeout <= 10
    raise socket.gaierror(-2, f"{address[0]}: Name or service not known")


def test_without_a_network_one_line_says_so_before_the_client_tries(found, miniature, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(OSError, match=r"^gs://bucket/run: storage\.googleapis\.com cannot be reached \(.*not known\)"):
        check_workdir(miniature(), "gs://bucket/run")


def test_a_proxy_or_another_server_is_not_ours_to_try(found, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:4443")
    files.check_google_storage()


def test_without_gcsfs_the_extra_is_named(found, miniature):
    found["gcsfs"] = False
    with pytest.raises(OSError, match=r"^gs://bucket/run: gs:// needs the gcs extra: .*\[gcs\]"):
        check_workdir(miniature(), "gs://bucket/run")


@pytest.mark.parametrize("path", ["foo://x/y", "file:///x/y"])
def test_another_scheme_is_named(miniature, path):
    with pytest.raises(OSError, match=rf"^{path}: \w+:// is no bucket that is known; a folder here has no scheme"):
        check_workdir(miniature(), path)


def test_a_workdir_that_cannot_be_is_named(miniature, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    texts = {"file": "is a file", "file/run": f"'{tmp_path}/file' is a file", "link": f"is a link to '{tmp_path}/gone'"}
    for name, text in texts.items():
        with pytest.raises(OSError, match=f"^workdir '{tmp_path}/{name}': {text}"):
            check_workdir(miniature(), str(tmp_path / name))


def test_a_benchmark_names_the_extra_of_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "benchmarks.steps", raising=False)
    with pytest.raises(SystemExit, match=r"steps needs the package 'matplotlib', .*\[benchmark\]"):
        benchmarks.load("steps")
