"""The recipe that a command line means: a file of configs/, or the one that a workdir was trained with."""

import dataclasses
import os
import runpy
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags

from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app
from dpose_jax.workdir import files, model_folder
from dpose_jax.workdir.checkpoints import Restored, check_workdir, read_variables
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


def of_workdir_or_model(workdir: str | None, model: str | None) -> tuple[Recipe, Restored]:
    """The recipe of --workdir, see `of_workdir`, or of --model, see `of_weights`; and the parameters.

    Of a workdir they are those of the checkpoint that `eval` names. Raises ValueError unless one of both is given, and
    what `model_folder.load` and `read_variables` raise.
    """
    if (workdir is None) == (model is None):
        raise ValueError("give one of --workdir=DIR and --model=FOLDER")
    if model is None:
        recipe = of_workdir(workdir)
        return recipe, read_variables(str(workdir), which=recipe.eval.checkpoint, ema=recipe.eval.ema)
    stored, variables, metadata = model_folder.load(model)
    step, averaged, device = (metadata["trained"].get(name) for name in ("step", "ema", "device"))
    return of_weights(stored, "--model"), Restored(variables, step, averaged, stored.seed, device)


def of_weights(published: Recipe, name: str = "--weights") -> Recipe:
    """The recipe of a published model, with `data` and `eval` of --config=FILE and the values of the command line.

    Raises ValueError if one of these is out of range, or decides on parameters; `name` is the flag of the model.
    """
    flag, recipe = flags.FLAGS["config"], published
    if not flag.using_default_value:
        given = Recipe.from_config(flag.value)
        recipe = dataclasses.replace(recipe, data=given.data, eval=given.eval)
    recipe = recipe.override(config_flags.get_override_values(flag))
    wrong = differences(recipe, published, training=False)
    if wrong:
        raise ValueError(f"{name}: the recipe is of another model: {'; '.join(wrong)}")
    return recipe
