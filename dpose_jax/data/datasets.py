"""The source that a config describes, and the rules for its fields."""

import os

from dpose_jax.data.array_record.crop_margin import Margin
from dpose_jax.data.array_record.reader import CropSource, RecordSource, records_folder
from dpose_jax.data.coco_dataset import FolderSource
from dpose_jax.data.sample import Source
from dpose_jax.data.synthetic.dataset import VAL_FIRST_INDEX, SyntheticSource
from dpose_jax.pose.joint_sets import JointSet, get_joint_set
from dpose_jax.recipe import Recipe

SPLITS = ("train", "val")


def make_source(config: Recipe, split: str, *, training: bool) -> Source:
    """The source that `config.data` describes.

    Args:
      config: see configs/base.py. Without `data.root` the folder is `$DPOSE_DATA/<data.set>`.
      split: `train` or `val`.
      training: whether it is for training. Otherwise `eval.boxes` chooses between annotated boxes (`gt`) and
        those of `data.val_detections` (`detections`).

    Raises:
      ValueError: if a field is not one of its values, the data breaks the rules, or stored crops do not reach as far
        as the recipe.
      FileNotFoundError: if a folder or file does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {SPLITS}")
    kind = config.data.source
    joint_set = get_joint_set(config.joint_set)
    detections = None if training else _detections(config, split)
    if kind == "synthetic":
        return _synthetic_source(config, split, joint_set)
    root = data_root(config)
    options = {
        "min_box_score": config.eval.min_box_score,
        "use_area": config.data.use_area,
        "max_bad_share": config.data.max_bad_share,
        "training": training,
    }
    if kind == "folder":
        annotations, images = config.data.annotations(split), config.data.images(split)
        return FolderSource(root, annotations, images, joint_set, detections=detections, **options)
    options["box_file"] = None if detections is None else os.path.join(root, detections)
    folder = records_folder(root, kind)
    if kind == "full":
        return RecordSource(folder, split, joint_set, **options)
    return CropSource(folder, split, joint_set, margin=Margin.of(config, joint_set, training=training), **options)


def _synthetic_source(config: Recipe, split: str, joint_set: JointSet) -> Source:
    facts = config.data.synthetic
    first, count = (0, facts.train_images) if split == "train" else (VAL_FIRST_INDEX, facts.val_images)
    return SyntheticSource(count, joint_set, difficulty=facts.difficulty, seed=facts.seed, first_index=first)


def data_root(config: Recipe) -> str:
    """`data.root`, or `$DPOSE_DATA/<data.set>`; raises ValueError or FileNotFoundError if there is none."""
    root = config.data.root
    if not root:
        if not os.environ.get("DPOSE_DATA"):
            raise ValueError("data.root is not set; give the data set's folder, or its parent in $DPOSE_DATA")
        root = os.path.join(os.environ["DPOSE_DATA"], config.data.set)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"data.root={root!r}: no such folder")
    return root


def _detections(config: Recipe, split: str) -> str | None:
    if config.eval.boxes == "gt":
        return None
    if config.data.source not in ("folder", "full") or split != "val" or not config.data.val_detections:
        raise ValueError(
            "eval.boxes='detections' needs data.source 'folder' or 'full', eval.split 'val' and data.val_detections, "
            f"got {config.data.source!r}, {split!r} and {config.data.val_detections!r}"
        )
    return config.data.val_detections
