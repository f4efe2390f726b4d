"""Stored recipes of every version: read as what they meant, or refused in one line that names file and field."""

import copy
import hashlib
import json
import os

import numpy as np
import pytest
import safetensors.numpy

from dpose_jax.recipe import Recipe
from dpose_jax.workdir import model_folder
from dpose_jax.workdir.compatibility import (
    ADDED,
    PREDICTION,
    STRUCTURE,
    as_stored,
    differences,
    from_stored,
    stored_recipe,
)

with open(os.path.join(model_folder.SHIPPED, model_folder.METADATA_FILE)) as _file:
    SHIPPED = json.load(_file)
STORED = SHIPPED["config"]


def leaves(nested, path=()):
    """The paths of every value that is no object."""
    for key, value in nested.items():
        yield from leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]


def without(nested, path):
    found = copy.deepcopy(nested)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return found


def names(paths):
    return [".".join(path) for path in paths]


LEAVES = list(leaves(STORED))
NEEDED = {*STRUCTURE, *PREDICTION} - set(ADDED)
PAIRED = {"data.mix", "data.mix_shares"}  # one of them does not fit the other's default


@pytest.mark.parametrize("path", LEAVES, ids=names(LEAVES))
def test_a_stored_recipe_without_a_field_is_what_it_meant_or_is_refused(path):
    """A missing field never changes what the model predicts: it is read as before, or named."""
    name, whole = ".".join(path), from_stored(STORED, "FILE")
    cut = without(STORED, path)
    if name in NEEDED | PAIRED or path[0] == "joint_set_facts":
        with pytest.raises(ValueError) as caught:
            from_stored(cut, "FILE")
        text = str(caught.value)
        assert text.startswith("FILE: ") and (name if name in NEEDED | PAIRED else path[1]) in text and "\n" not in text
    else:
        found = from_stored(cut, "FILE")
        differ = [key for key, value in found.flatten().items() if value != whole.flatten()[key]]
        assert set(differ) <= {name} and not set(differ) & {*STRUCTURE, *PREDICTION}
        if differ:  # a default: of where the data were, how they were augmented or for how long was trained
            assert path[0] in ("data", "augment", "optim", "train")


def test_the_shipped_model_json_without_a_field_loads_or_is_named(tmp_path):
    os.symlink(os.path.join(model_folder.SHIPPED, model_folder.WEIGHTS_FILE), tmp_path / model_folder.WEIGHTS_FILE)
    file = tmp_path / model_folder.METADATA_FILE
    for path in leaves(SHIPPED):
        if path[0] == "config" and path[1] != "joint_set_facts" and path[1:] != ("model", "backbone"):
            continue  # as above
        file.write_text(json.dumps(without(SHIPPED, path)))
        if path[0] == "trained":
            assert model_folder.load(str(tmp_path))[2]["trained"] == without(SHIPPED, path)["trained"]
            continue
        with pytest.raises(ValueError) as caught:
            model_folder.load(str(tmp_path))
        assert str(caught.value).startswith(f"{file}: ") and path[-1] in str(caught.value)
    file.write_text(json.dumps(SHIPPED | {"trained": None}))
    assert model_folder.load(str(tmp_path))[0] == from_stored(STORED, "FILE")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda array: array.astype(np.float16), "float16 there, the model has float32"),
        (lambda array: array.astype(np.int32), "int32 there, the model has float32"),
        (lambda array: array * np.float32("nan"), "is not finite"),
        (lambda array: np.zeros(3, np.float32), r"\(3,\) there, the model has"),
    ],
)
def test_weights_of_another_type_are_named(change, text, tmp_path):
    """With a checksum that fits: a file that was converted."""
    with open(os.path.join(model_folder.SHIPPED, model_folder.WEIGHTS_FILE), "rb") as file:
        tensors = safetensors.numpy.load(file.read())
    name = sorted(tensors)[0]
    data = safetensors.numpy.save(tensors | {name: change(tensors[name])})
    (tmp_path / model_folder.WEIGHTS_FILE).write_bytes(data)
    described = SHIPPED | {"sha256": hashlib.sha256(data).hexdigest()}
    (tmp_path / model_folder.METADATA_FILE).write_text(json.dumps(described))
    with pytest.raises(ValueError, match=f"{tmp_path}/model.safetensors: not the weights .*\n  {name}: {text}"):
        model_folder.load(str(tmp_path))


@pytest.mark.parametrize("value", [5, [1, 2], None, "text", [[1]], {}])
def test_a_section_that_is_none_is_one_line(value):
    for section in (*STORED, "data.synthetic"):
        stored = copy.deepcopy(STORED)
        if section == "data.synthetic":
            stored["data"]["synthetic"] = value
        else:
            stored[section] = value
        if value in (None, {}) or section == "joint_set":
            try:  # an optional field, or a section whose every field has a default
                from_stored(stored, "FILE")
                continue
            except ValueError as error:
                text = str(error)
        elif (section in ("seed", "profile_steps") and value == 5) or (section, value) == ("version", "text"):
            continue
        else:
            with pytest.raises(ValueError) as caught:
                from_stored(stored, "FILE")
            text = str(caught.value)
        assert text.startswith("FILE: ") and section in text and "\n" not in text


def test_a_field_of_another_version_is_named_with_it():
    stored = copy.deepcopy(STORED) | {"version": "9.9.0"}
    stored["model"]["decoder_block"] = 3
    with pytest.raises(ValueError, match=r"^FILE: model\.decoder_block: .* version 9\.9\.0 wrote it; did you mean 'mo"):
        from_stored(stored, "FILE")
    with pytest.raises(ValueError, match=r"^FILE: ghosts\.count: unknown to dpose_jax 0\.1\.0; version 0\.1\.0 wrote"):
        from_stored(STORED | {"ghosts": {"count": 3}}, "FILE")


@pytest.mark.parametrize("name", ["model.residual", "diffusion.unroll_share", "optim.denoiser_from"])
def test_a_removed_field_is_read_where_it_was_off(name):
    section, field = name.split(".")
    stored = copy.deepcopy(STORED)
    stored[section].pop(field, None)
    whole = from_stored(stored, "FILE")
    stored[section][field] = 0.0
    assert from_stored(stored, "FILE") == whole
    stored[section][field] = 0.5
    with pytest.raises(ValueError, match=rf"^FILE: {name} is on there; dpose_jax .* no longer has it"):
        from_stored(stored, "FILE")


def test_a_recipe_comes_back_as_it_was_stored(tmp_path):
    recipe = Recipe().override({"model.width": 24, "seed": 3, "sampler.steps": (1, 3), "joint_set": "crowdpose"})
    (tmp_path / "config.json").write_text(json.dumps(as_stored(recipe)))
    found = stored_recipe(str(tmp_path))
    assert found.joints == recipe.joints and found.override({"joint_set": "crowdpose"}) == recipe
    again = from_stored(json.loads(json.dumps(as_stored(found))), "FILE")
    assert again == found


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"seed": 0}', "[" * 100_000, "\xff"])
def test_a_damaged_file_is_named(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError) as caught:
        stored_recipe(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_without_a_file_or_a_name_there_is_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/config\.json: missing"):
        stored_recipe(str(tmp_path))
    with pytest.raises(ValueError, match="--workdir='': must name"):
        stored_recipe("")


def test_a_recipe_from_before_the_light_decoder_means_what_it_meant():
    """Nothing stored of decoder, upsampling or share of the batch: the U-Net, resized maps, every example."""
    stored = copy.deepcopy(STORED)
    for section, name in (("model", "decoder"), ("model", "upsampling"), ("diffusion", "every")):
        stored[section].pop(name, None)
    recipe = from_stored(stored, "FILE")
    assert (recipe.model.decoder, recipe.model.upsampling, recipe.diffusion.every) == ("unet", "bilinear", 1)
    other = recipe.override({"model.decoder": "light", "model.upsampling": "subpixel", "diffusion.every": 2})
    assert differences(other, recipe, training=True) == [
        "model.decoder: unet there, light in the config",
        "model.upsampling: bilinear there, subpixel in the config",
    ]
    assert from_stored(json.loads(json.dumps(as_stored(other))), "FILE").model == other.model


def test_optimizer_and_training_matter_for_training_alone():
    recipe = from_stored(STORED, "FILE")
    other = recipe.override({"optim.clip_norm": 0.0, "optim.ema": 0.0, "optim.weight_decay": 0.0, "train.steps": 9999})
    other = other.override({"optim.learning_rate": 1.0, "seed": 5, "eval.flip": False, "sampler.steps": (3,)})
    assert differences(other, recipe, training=False) == []
    assert differences(other, recipe, training=True) == [
        "optim.clip_norm: on there, off in the config",
        "optim.ema: on there, off in the config",
        "optim.weight_decay: on there, off in the config",
        "seed: 0 there, 5 in the config",
    ]
    assert differences(recipe.override({"model.width": 16}), recipe, training=True) == []  # what `tiny` has anyway
