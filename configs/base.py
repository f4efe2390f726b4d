"""The defaults of dpose_jax/recipe.py. The other recipes change fields of them; this file is not run by itself."""

from ml_collections import ConfigDict

from dpose_jax.recipe import Recipe


def get_config() -> ConfigDict:
    """Returns the defaults."""
    return Recipe().to_config()
