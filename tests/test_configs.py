"""Every shipped recipe builds, and says on top what it is."""

import importlib
import pathlib

import pytest
from ml_collections import ConfigDict

from dpose_jax.diffusion.sampler import sampler_settings
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.training.state import make_optimizer
from dpose_jax.training.step import make_train_step

RECIPES = sorted(path.stem for path in pathlib.Path(__file__).parents[1].glob("configs/*.py") if path.stem[0] != "_")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_everything_but_the_data(name):
    module = importlib.import_module(f"configs.{name}")
    assert module.__doc__, "a recipe's header says what it reproduces"
    config = module.get_config()
    model, optimizer = build_model(config), make_optimizer(config)
    assert make_train_step(config, model, build_schedule(config), optimizer)
    assert model.codec.size == tuple(side // config.stride for side in config.input_size)
    assert [one.steps for one in sampler_settings(config)] == list(config.sampler.steps)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "base"])
def test_recipe_is_a_delta_that_adds_no_field(name):
    base = importlib.import_module("configs.base").get_config()
    config = importlib.import_module(f"configs.{name}").get_config()
    assert _fields(config) == _fields(base)


def _fields(config, prefix=""):
    found = set()
    for key in config:
        value = config[key]
        found |= _fields(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}"}
    return found
