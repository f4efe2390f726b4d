import os
import subprocess
import sys

import jax
import pytest
from absl import flags

import dpose_jax
from dpose_jax.runtime import app, cpu
from dpose_jax.workdir import files


@pytest.fixture
def cache_folder():
    before = jax.config.jax_compilation_cache_dir
    yield lambda folder: jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_in_the_users_cache(cache_folder, monkeypatch, tmp_path):
    cache_folder(None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "dpose_jax" / "programs")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache_folder(None)
    cpu.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "home" / ".cache" / "dpose_jax" / "programs")


def test_a_folder_that_jax_was_given_stays(cache_folder, tmp_path):
    cache_folder(str(tmp_path / "mine"))
    cpu.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


@pytest.fixture
def path_flag(monkeypatch):
    """Sets --out and expands it as the entry points do."""

    def set_flag(value):
        values = flags.FlagValues()
        flags.DEFINE_string("out", value, "", flag_values=values)
        values.mark_as_parsed()
        monkeypatch.setattr(flags, "FLAGS", values)
        app._expand_paths()
        return values.out

    return set_flag


def test_the_home_folder_of_a_path_is_known_or_the_path_refused(path_flag, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert path_flag("~/x") == "/home/me/x" and path_flag("./~x") == "./~x" and path_flag("a~") == "a~"
    for value in ("~nobody-of-this-name/x", "~nobody-of-this-name"):
        with pytest.raises(ValueError, match=f"--out='{value}': no home folder is known for it"):
            path_flag(value)
    with pytest.raises(ValueError, match="--out='': must name a file, folder or bucket"):
        path_flag("")


def test_a_folder_that_was_deleted_below_the_program_is_named(path_flag, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(OSError, match="^the current folder was deleted; change to one that exists"):
        path_flag("x")


def test_a_fusion_that_the_user_names_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    cpu.fuse_elementwise()
    assert os.environ["XLA_FLAGS"] == f"--xla_cpu_max_isa=AVX2 {cpu.FUSION_FLAG}={cpu.FUSIONS}"
    mine = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT"
    monkeypatch.setenv("XLA_FLAGS", mine)
    cpu.fuse_elementwise()
    assert os.environ["XLA_FLAGS"] == mine


def test_xla_reads_the_fusion_at_the_first_computation():
    """An unknown flag would end the process here, and one that came too late would change nothing."""
    program = """
import jax, jax.numpy as jnp
import dpose_jax
from dpose_jax.runtime import cpu
cpu.fuse_elementwise()
x = jnp.linspace(0, 1, 64 * 48 * 32 * 8).reshape(8, 64, 48, 32)
text = jax.jit(lambda x: jnp.maximum(x * 2 + 1, 0) * x - x).lower(x).compile().as_text()
assert "ynn" in text, text
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"XLA_FLAGS": ""})


def test_the_predictor_of_a_notebook_is_as_fast_as_the_command(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert dpose_jax.Predictor.__name__ == "Predictor" and cpu.FUSION_FLAG in os.environ["XLA_FLAGS"]


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_files_have_the_permissions_of_the_users_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        files.write_bytes(tmp_path / "a.json", b"{}")
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "a.json").st_mode & 0o777 == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["a.json"]


def test_only_jax_is_said_to_lack_a_platform():
    nms = "Could not run 'torchvision::nms' with arguments from the 'CUDA' backend."
    assert app._what_failed(nms) is None and app._what_failed("UNAVAILABLE: RPC") is None  # of one process
    for text in ("Unable to initialize backend 'cuda': none", "Unknown backend foo. Available backends are ['cpu']"):
        assert app._what_failed(text).startswith("JAX_PLATFORMS=")
