"""Every shipped recipe builds, and says on top what it is."""

import importlib
import json
import pathlib
import shutil

import pytest
from ml_collections import ConfigDict

from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches, train_iterator
from dpose_jax.diffusion.sampler import sampler_settings
from dpose_jax.models.backbones import BACKBONES
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.training.state import make_optimizer
from dpose_jax.training.step import make_train_step

RECIPES = sorted(path.stem for path in pathlib.Path(__file__).parents[1].glob("configs/*.py") if path.stem[0] != "_")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_everything_but_the_data(name):
    module = importlib.import_module(f"configs.{name}")
    assert module.__doc__, "a recipe's header says what it reproduces"
    config = module.get_config()
    model, optimizer = build_model(config), make_optimizer(config.optim, config.train)
    assert make_train_step(config, model, build_schedule(config.diffusion), optimizer)
    assert model.codec.size == tuple(side // config.stride for side in config.input_size)
    assert [one.steps for one in sampler_settings(config)] == list(config.sampler.steps)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "base"])
def test_recipe_is_a_delta_that_adds_no_field(name):
    base = importlib.import_module("configs.base").get_config()
    config = importlib.import_module(f"configs.{name}").get_config()
    assert _fields(config) == _fields(base)


@pytest.mark.parametrize("name", RECIPES)
def test_all_recipes_but_the_papers_have_what_the_study_taught(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    found = (tuple(config.diffusion.t_range), config.sampler.t_start, config.diffusion.own_share)
    assert found == (((1, 1000), 1000, 0.0) if name == "paper_coco_w32" else ((1, 300), 300, 0.5))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_starts_from_imagenet_where_somebody_publishes_its_backbone(name):
    model = importlib.import_module(f"configs.{name}").get_config().model
    assert model.pretrained == ("imagenet" if BACKBONES[model.backbone].imagenet else "none")


# Recipe, sample of its data set, boxes of a detector there; the official files are named as the recipe says.
OFFICIAL = [
    ("coco_w32_256x192", "coco", "test_coco_det_AP_H_56.json", 14),
    ("coco_w48_384x288", "coco", "test_coco_det_AP_H_56.json", 14),
    ("crowdpose_w32_256x192", "crowdpose", "test_crowdpose_det_AP_40.json", 5),
    ("aic_w32_256x192", "aic", None, 9),
]


def _official_layout(root: pathlib.Path, sample: pathlib.Path, config: ConfigDict, detections: str | None) -> None:
    """The sample's files under the names that the recipe expects; AI Challenger's annotations in its own format."""
    content = json.loads((sample / f"test_{sample.name}.json").read_text())
    own = _own_format(content) if sample.name == "aic" else content
    for split in ("train", "val"):
        annotations, images = (root / config.data[f"{split}_{kind}"] for kind in ("annotations", "images"))
        annotations.parent.mkdir(parents=True, exist_ok=True)
        annotations.write_text(json.dumps(own))
        images.mkdir(parents=True, exist_ok=True)
        for image in content["images"]:
            shutil.copy(sample / image["file_name"], images)
    if detections:
        target = root / config.data.val_detections
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
    config = importlib.import_module(f"configs.{name}").get_config()
    _official_layout(tmp_path, data_root / "samples" / sample, config, detections)
    config.data.root, config.data.workers, config.train.batch_size = str(tmp_path), 0, 4
    train, val = (make_source(config, split, training=split == "train") for split in ("train", "val"))
    report = train.report()
    assert report["records"] == persons == report["kept"] + report["crowd"] + report["no_joints"]
    stream = train_iterator(config, train)
    batch = next(stream)
    stream.close()
    assert batch["image"].shape == (4, *config.input_size, 3) and batch["visible"].sum() > 4
    assert len(list(eval_batches(config, val, 8))) == -(-len(val) // 8)
    areas = {
        each["id"]: each["area"] / (each["bbox"][2] * each["bbox"][3]) for each in val.ground_truth()["annotations"]
    }
    assert config.data.use_area == (sample == "coco")
    if not config.data.use_area:
        assert all(area == pytest.approx(0.53) for area in areas.values())
    if detections:
        config.eval.boxes = "detections"
        boxes = make_source(config, "val", training=False)
        assert len(boxes) > 0 and not boxes[0].keypoints.any()


def _fields(config, prefix=""):
    found = set()
    for key in config:
        value = config[key]
        found |= _fields(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}"}
    return found
