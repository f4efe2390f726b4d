"""Which model predicts, in a line of text."""

from collections.abc import Mapping
from typing import Any

from dpose_jax.models.weights.published import LICENCE, PUBLISHED
from dpose_jax.recipe import Recipe

MADE = {"synthetic": "drawn people", "rendered": "rendered people"}


def trained_on(recipe: Recipe) -> str:
    """The data of a recipe's training: `drawn people alone, no photos`, or the annotation file and its data set."""
    sources = recipe.data.mix or (recipe.data.source,)
    folder = f"{recipe.data.train_annotations} of {recipe.data.root or recipe.data.set}"
    names = " and ".join(MADE.get(source, folder) for source in sources)
    alone = set(sources) <= set(MADE) and recipe.model.pretrained == "none"
    return f"{names} alone, no photos" if alone else names


def about_trained(what: str, recipe: Recipe, trained: Mapping[str, Any]) -> str:
    """The line of a model of ours; `trained` is what model.json says of it, its step or whose weights it has."""
    if "step" not in trained:
        return f"{what}, weights of {trained.get('weights', 'unknown origin')}"
    return f"{what}, {trained['step']} steps of training on {trained_on(recipe)}"


def about_published(source: str, recipe: Recipe) -> str:
    """The line of a published model: a name of PUBLISHED, or its file."""
    height, width = recipe.input_size
    text = f"{source}, plain HRNet, crops of {height} x {width} px"
    if source in PUBLISHED:
        text += f", {LICENCE}; AP {PUBLISHED[source].ap} on COCO val2017 by its authors"
    return text
