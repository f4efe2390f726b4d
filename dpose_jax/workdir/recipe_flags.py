"""The recipe that a command line means: a file of configs/, or the one that a workdir was trained with."""

import dataclasses

from absl import flags
from ml_collections import config_flags

from dpose_jax.recipe import Recipe
from dpose_jax.runtime.recipe_file import STORED, define
from dpose_jax.workdir import files, model_folder
from dpose_jax.workdir.checkpoints import Restored, check_workdir, read_variables
from dpose_jax.workdir.compatibility import differences, stored_recipe


def define_beside_workdir() -> None:
    """The flag --config of a command that reads a workdir; without it, `of_workdir` takes the stored recipe."""
    define(f"The file of configs/ that was trained; by default {STORED}.", STORED)


def of_workdir(workdir: str | None) -> Recipe:
    """The recipe of a workdir, with the values of the command line; with --config=FILE that file's instead.

    Fields of `optim` and `train` never matter. Raises FileNotFoundError if there is no such workdir, or no recipe in
    it, and ValueError, which names the field, if one is out of range or does not fit the workdir's parameters.
    """
    if workdir is None:
        raise ValueError("--workdir=DIR is not given: the folder that was trained into")
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
