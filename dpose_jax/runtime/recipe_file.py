"""The flag --config, a file of configs/; whatever is wrong in it is said in one line."""

import glob
import os
import runpy
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags

from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app
from dpose_jax.typed_fields import nearest

STORED = "the recipe that the workdir stores"  # instead of a file


class _RecipeFile(flags.ArgumentParser):
    """Reads a file of configs/. Whatever is wrong in it becomes a ValueError of one line."""

    def parse(self, path: str) -> ConfigDict:
        if path == STORED:
            return Recipe().to_config()  # names and types for --config.x=y
        path = os.path.expanduser(path)
        if not os.path.isfile(path):
            folder = os.path.dirname(path) or "configs"
            near = nearest(os.path.basename(path), map(os.path.basename, glob.glob(f"{folder}/*.py")))
            raise ValueError(f"no such file in {folder!r}{near}" if near else "no such file")
        try:
            config = runpy.run_path(path)["get_config"]()
        except (Exception, SystemExit) as error:
            raise ValueError(_in_one_line(error, path)) from error
        if not isinstance(config, ConfigDict):
            raise ValueError("get_config() must return a ConfigDict; see configs/base.py")
        Recipe.from_config(config)
        return config.lock()


def _in_one_line(error: BaseException, path: str) -> str:
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, SystemExit):
        return f"ends the program itself, by SystemExit({error.code!r})"
    if not lines:
        return "defines no get_config()" if isinstance(error, KeyError) else str(error)
    text = app.unknown_field(error) if isinstance(error, AttributeError) else f"{type(error).__name__}: {error}"
    return " ".join(f"line {lines[-1]}: {text}".split())


def define(help_text: str, default: str | None = None) -> flags.FlagHolder:
    """The flag --config, a file of configs/, with --config.field=value."""
    holder = config_flags.DEFINE_config_file("config", None, help_text, lock_config=True)
    flags.FLAGS["config"].parser = _RecipeFile()
    if default:
        with app.flag_errors():
            flags.FLAGS.set_default("config", default)
    return holder
