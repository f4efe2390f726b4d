"""The source that a recipe describes."""

import os
from typing import Any

from dpose_jax.data.array_record.crop_margin import Margin
from dpose_jax.data.array_record.reader import CropSource, RecordSource, records_folder
from dpose_jax.data.coco_dataset import FolderSource
from dpose_jax.data.mixed import MixedSource
from dpose_jax.data.sample import Source
from dpose_jax.data.synthetic.dataset import VAL_FIRST_INDEX, SyntheticSource
from dpose_jax.recipe import Data, Recipe

SPLITS = ("train", "val")


def make_source(recipe: Recipe, split: str, *, training: bool) -> Source:
    """The source that `recipe.data` describes of a split, `train` or `val`.

    Unless it is for training, `eval.boxes` chooses between annotated boxes (`gt`) and those of `data.val_detections`
    (`detections`). Raises FileNotFoundError, or ValueError if the data breaks the rules, there are no such detections,
    or stored crops do not reach as far as the recipe. Training reads the sources of `data.mix` where there are any.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {SPLITS}")
    if training and split == "train" and recipe.data.mix:
        of_one = {name: {"data.source": name, "data.mix": (), "data.mix_shares": ()} for name in recipe.data.mix}
        parts = {name: make_source(recipe.override(one), split, training=True) for name, one in of_one.items()}
        return MixedSource(parts, recipe.data.mix_shares)
    data, joint_set, detections = recipe.data, recipe.joints, None
    if not training and recipe.eval.boxes == "detections":
        detections = data.val_detections
        if data.source not in ("folder", "full") or split != "val" or not detections:
            raise ValueError(
                "eval.boxes='detections' needs data.source 'folder' or 'full', eval.split 'val' and "
                f"data.val_detections, got {data.source!r}, {split!r} and {detections!r}"
            )
    if data.source == "synthetic":
        drawn = data.synthetic
        first, count = (0, drawn.train_images) if split == "train" else (VAL_FIRST_INDEX, drawn.val_images)
        return SyntheticSource(count, joint_set, difficulty=drawn.difficulty, seed=drawn.seed, first_index=first)
    if data.source == "rendered":
        from dpose_jax.data.rendered.dataset import RenderedSource  # here, because it needs the extra [render]

        return RenderedSource(data.rendered, joint_set, split, max_bad_share=data.max_bad_share)
    options: dict[str, Any] = {"use_area": data.use_area, "max_bad_share": data.max_bad_share, "training": training}
    options |= {"min_box_score": recipe.eval.min_box_score, "upright": data.orientation == "upright"}
    options["category"] = data.category
    if data.source == "folder":
        return FolderSource(*split_files(data, split), joint_set, detections=detections, **options)
    root = data_root(data)
    folder = records_folder(root, data.source)
    if data.source == "full":
        box_file = None if detections is None else os.path.join(root, detections)
        return RecordSource(folder, split, joint_set, box_file=box_file, **options)
    options |= {"margin": Margin.of(recipe, training=training), "height": recipe.input_size[0]}
    return CropSource(folder, split, joint_set, **options)


def split_files(data: Data, split: str) -> tuple[str, str, str]:
    """The root of `data.source` folder, and under it the annotation file and the folder of images of a split.

    Raises what `data_root` raises, and FileNotFoundError, which names the field, if the other two are not there.
    """
    root, annotations, images = data_root(data), data.annotations(split), data.images(split)
    kinds = ("annotations", annotations, os.path.isfile, "file"), ("images", images, os.path.isdir, "folder")
    for name, value, is_there, kind in kinds:
        if not is_there(path := os.path.join(root, value)):
            other = ", which an evaluation needs too; docs/your_data.md divides one file" if split == "val" else ""
            raise FileNotFoundError(f"data.{split}_{name}={value!r}: no such {kind}: {path}{other}")
    return root, annotations, images


def data_root(data: Data) -> str:
    """`data.root`, or `$DPOSE_DATA/<data.set>`; raises ValueError or FileNotFoundError if there is none."""
    if data.root == "":
        raise ValueError("data.root='': must name a folder; is a variable of the shell unset?")
    if not data.root and not os.environ.get("DPOSE_DATA"):
        raise ValueError("data.root is not set; give the data set's folder, or its parent in $DPOSE_DATA")
    root = data.root or os.path.join(os.environ["DPOSE_DATA"], data.set)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"data.root={root!r}: no such folder")
    return root
