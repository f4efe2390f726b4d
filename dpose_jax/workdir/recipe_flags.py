"""The recipe that a command line means: a file of configs/, or the one that a workdir was trained with."""

import os
import pathlib

from absl import flags
from ml_collections import config_flags

from dpose_jax.recipe import Recipe
from dpose_jax.workdir.checkpoints import check_workdir
from dpose_jax.workdir.compatibility import stored_recipe

# Gives the fields of --config.x=y their names and types where --config names no file.
FIELDS = pathlib.Path(__file__).parents[2] / "configs" / "base.py"


def define(help_text: str, default: str | None = None) -> flags.FlagHolder:
    """The flag --config, a file of configs/, with --config.field=value."""
    return config_flags.DEFINE_config_file("config", default, help_text, lock_config=True)


def define_beside_workdir() -> None:
    """The flag --config of a command that reads a workdir, whose own recipe it takes without; see `of_workdir`."""
    default = str(FIELDS) if FIELDS.exists() else None
    define("The file of configs/ that was trained; by default the recipe that the workdir stores.", default)


def of_workdir(workdir: str) -> Recipe:
    """The recipe of a workdir, with the values of the command line; with --config=FILE that file's instead.

    Fields of `optim` and `train` never matter, the others have to fit the workdir's parameters.

    Raises:
      FileNotFoundError: if there is no such workdir, or no recipe in it.
      ValueError: if a field is out of range, or decides on parameters and differs from the workdir's; names it.
    """
    if not workdir or not os.path.isdir(workdir) and "://" not in workdir:
        raise FileNotFoundError(f"workdir {workdir!r}: no such folder")
    flag = flags.FLAGS["config"]
    if flag.using_default_value or flag.value is None:
        recipe = stored_recipe(workdir)
        overrides = {} if flag.value is None else config_flags.get_override_values(flag)
        recipe = recipe.override(overrides)
    else:
        recipe = Recipe.from_config(flag.value)
    check_workdir(recipe, workdir)
    return recipe
