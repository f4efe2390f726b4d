"""Every shipped recipe builds, and says on top what it is."""

import importlib
import json
import pathlib
import shutil

import pytest

from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches, train_iterator
from dpose_jax.diffusion.sampler import sampler_settings
from dpose_jax.models.backbones import BACKBONES
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.weights.published import PROTOCOL, PUBLISHED, SIGMAS
from dpose_jax.recipe import Data, Recipe
from dpose_jax.training.optimizer import make_optimizer
from dpose_jax.training.step import make_train_step

RECIPES = sorted(path.stem for path in pathlib.Path(__file__).parents[1].glob("configs/*.py") if path.stem[0] != "_")


def load(name: str) -> Recipe:
    """The recipe of a file of configs/, which adds no field: that would be an error."""
    return Recipe.from_config(importlib.import_module(f"configs.{name}").get_config())


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_everything_but_the_data(name):
    assert importlib.import_module(f"configs.{name}").__doc__, "a recipe's header says what it reproduces"
    recipe = load(name)
    model, optimizer = build_model(recipe), make_optimizer(recipe.optim, recipe.train)
    assert make_train_step(recipe, model, build_schedule(recipe.diffusion), optimizer)
    assert model.codec.size == tuple(side // recipe.stride for side in recipe.input_size)
    assert tuple(one.steps for one in sampler_settings(recipe.sampler)) == recipe.sampler.steps


@pytest.mark.parametrize("name", RECIPES)
def test_all_recipes_but_the_papers_have_what_the_study_taught(name):
    recipe = load(name)
    found = (recipe.diffusion.t_range, recipe.sampler.t_start, recipe.diffusion.own_share)
    assert found == (((1, 1000), 1000, 0.0) if name == "paper_coco_w32" else ((1, 300), 300, 0.5))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_starts_from_imagenet_where_somebody_publishes_its_backbone(name):
    recipe = load(name)
    model = recipe.model
    if recipe.optim.backbone_rate:
        assert model.pretrained == ("imagenet" if BACKBONES[model.backbone].imagenet else "none")
        return
    # A denoiser alone: the published model, cropped, encoded and decoded by its own protocol.
    assert PUBLISHED[model.pretrained].input_size == recipe.input_size
    assert recipe.codec.sigma == SIGMAS[recipe.input_size] and recipe.loss.coarse == 0
    flat = recipe.flatten()
    assert all(flat[field] == PROTOCOL[field] for field in ("crop.warp", "codec.name", "codec.refine"))


# Recipe, sample of its data set, boxes of a detector there; the official files are named as the recipe says.
OFFICIAL = [
    ("coco_w32_256x192", "coco", "test_coco_det_AP_H_56.json", 14),
    ("coco_w48_384x288", "coco", "test_coco_det_AP_H_56.json", 14),
    ("crowdpose_w32_256x192", "crowdpose", "test_crowdpose_det_AP_40.json", 5),
    ("aic_w32_256x192", "aic", None, 9),
]


def _official_layout(root: pathlib.Path, sample: pathlib.Path, data: Data, detections: str | None) -> None:
    """The sample's files under the names that the recipe expects; AI Challenger's annotations in its own format."""
    content = json.loads((sample / f"test_{sample.name}.json").read_text())
    own = _own_format(content) if sample.name == "aic" else content
    for split in ("train", "val"):
        annotations, images = (root / name for name in (data.annotations(split), data.images(split)))
        annotations.parent.mkdir(parents=True, exist_ok=True)
        annotations.write_text(json.dumps(own))
        images.mkdir(parents=True, exist_ok=True)
        for image in content["images"]:
            shutil.copy(sample / image["file_name"], images)
    if detections:
        target = root / data.val_detections
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample / detections, target)


def _own_format(content: dict) -> list:
    entries = {image["id"]: {"image_id": image["file_name"][:-4], "url": ""} for image in content["images"]}
    for each in content["annotations"]:
        joints = each["keypoints"].copy()
        joints[2::3] = [{2: 1, 1: 2, 0: 3}[v] for v in joints[2::3]]
        (x, y, w, h), name = each["bbox"], f"human{each['id']}"
        entries[each["image_id"]].setdefault("keypoint_annotations", {})[name] = joints
        entries[each["image_id"]].setdefault("human_annotations", {})[name] = [x, y, x + w, y + h]
    return list(entries.values())


@pytest.mark.parametrize(("name", "sample", "detections", "persons"), OFFICIAL)
def test_recipe_reads_the_official_layout_and_gives_batches(data_root, tmp_path, name, sample, detections, persons):
    recipe = load(name).override({"data.root": str(tmp_path), "data.workers": 0, "train.batch_size": 4})
    _official_layout(tmp_path, data_root / "samples" / sample, recipe.data, detections)
    train, val = (make_source(recipe, split, training=split == "train") for split in ("train", "val"))
    report = train.report()
    assert report["records"] == persons == report["kept"] + report["crowd"] + report["no_joints"]
    stream = train_iterator(recipe, train)
    batch = next(stream)
    stream.close()
    assert batch["image"].shape == (4, *recipe.input_size, 3) and batch["visible"].sum() > 4
    assert len(list(eval_batches(recipe, val, 8))) == -(-len(val) // 8)
    areas = {
        each["id"]: each["area"] / (each["bbox"][2] * each["bbox"][3]) for each in val.ground_truth()["annotations"]
    }
    assert recipe.data.use_area == (sample == "coco")
    if not recipe.data.use_area:
        assert all(area == pytest.approx(0.53) for area in areas.values())
    if detections:
        boxes = make_source(recipe.override({"eval.boxes": "detections"}), "val", training=False)
        assert len(boxes) > 0 and not boxes[0].keypoints.any()
