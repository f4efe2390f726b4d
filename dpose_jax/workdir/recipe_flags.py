"""The recipe that a command line means: a file of configs/, or the one that a workdir was trained with."""

import dataclasses
import os
import runpy
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags

from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app
from dpose_jax.workdir import files
from dpose_jax.workdir.checkpoints import check_workdir
from dpose_jax.workdir.compatibility import differences, stored_recipe

STORED = "the recipe that the workdir stores"  # instead of a file


class _RecipeFile(flags.ArgumentParser):
    """Reads a file of configs/. Whatever is wrong in it becomes a ValueError of one line."""

    def parse(self, path: str) -> ConfigDict:
        if path == STORED:
            return Recipe().to_config()  # names and types for --config.x=y
        path = os.path.expanduser(path)
        try:
            config = runpy.run_path(path)["get_config"]()
        except Exception as error:
            raise ValueError(_in_one_line(error, path)) from error
        if not isinstance(config, ConfigDict):
            raise ValueError("get_config() must return a ConfigDict; see configs/base.py")
        Recipe.from_config(config)
        return config.lock()


def _in_one_line(error: Exception, path: str) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
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


def define_beside_workdir() -> None:
    """The flag --config of a command that reads a workdir; without it, `of_workdir` takes the stored recipe."""
    define(f"The file of configs/ that was trained; by default {STORED}.", STORED)


def of_workdir(workdir: str | None) -> Recipe:
    """The recipe of a workdir, with the values of the command line; with --config=FILE that file's instead.

    Fields of `optim` and `train` never matter. Raises FileNotFoundError if there is no such workdir, or no recipe in
    it, and ValueError, which names the field, if one is out of range or does not fit the workdir's parameters.
    """
    if not workdir or not files.exists(workdir):
        raise FileNotFoundError(f"workdir {workdir!r}: no such folder")
    flag = flags.FLAGS["config"]
    if flag.using_default_value:
        recipe = stored_recipe(workdir).override(config_flags.get_override_values(flag))
    else:
        recipe = Recipe.from_config(flag.value)
    check_workdir(recipe, workdir)
    return recipe


def of_weights(published: Recipe) -> Recipe:
    """The recipe of a published model, with `data` and `eval` of --config=FILE and the values of the command line.

    Raises ValueError if one of these is out of range, or decides on parameters.
    """
    flag, recipe = flags.FLAGS["config"], published
    if not flag.using_default_value:
        given = Recipe.from_config(flag.value)
        recipe = dataclasses.replace(recipe, data=given.data, eval=given.eval)
    recipe = recipe.override(config_flags.get_override_values(flag))
    wrong = differences(recipe, published, training=False)
    if wrong:
        raise ValueError(f"--weights: they are of another model: {'; '.join(wrong)}")
    return recipe
