import jax
import pytest

from dpose_jax import command_line


@pytest.fixture
def cache_folder():
    before = jax.config.jax_compilation_cache_dir
    yield lambda folder: jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_in_the_users_cache(cache_folder, monkeypatch, tmp_path):
    cache_folder(None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command_line.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "dpose_jax" / "programs")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache_folder(None)
    command_line.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "home" / ".cache" / "dpose_jax" / "programs")


def test_a_folder_that_jax_was_given_stays(cache_folder, tmp_path):
    cache_folder(str(tmp_path / "mine"))
    command_line.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
