"""Folds: annotation files by which every image is validated once, for studies of small data sets."""

import os

import numpy as np
from absl import flags

from benchmarks import report
from dpose_jax.data.coco_format import (
    Audit,
    coco_lists,
    format_counts,
    is_image_id,
    is_int,
    is_own_format,
    read_coco,
)
from dpose_jax.workdir.files import read_json, write_json

ANNOTATIONS = flags.DEFINE_list(
    "annotations", [], "COCO's or AI Challenger's files of one joint set.", allow_override=True
)
FOLDS = flags.DEFINE_integer("folds", 4, "How many, of equally many images, or one more.")
OUT = flags.DEFINE_string("out", None, "The folder for fold_K_train.json and fold_K_val.json.", allow_override=True)


def main() -> None:
    """Writes the files, and prints how many images and annotations each has."""
    if not ANNOTATIONS.value or not OUT.value:
        raise ValueError("--annotations and --out: both are needed, the files to divide and a folder")
    contents = {file: read_placeable(file) for file in ANNOTATIONS.value}
    rows = []
    for k, parts in enumerate(divide(contents, FOLDS.value)):
        for split, content in parts.items():
            name = f"fold_{k}_{split}.json"
            write_json(os.path.join(OUT.value, name), content, indent=None)
            rows.append({"file": name, "images": len(content["images"]), "annotations": len(content["annotations"])})
    print(report.table(rows))


def read_placeable(file: str) -> dict:
    """The images of a file that have an id, and their annotations, as they are; and its categories.

    Left out, counted, logged and printed are the rules `image_entry`: an image without an id; `annotation_entry`: an
    annotation without an id; `annotation_without_image`: one of an image that is not listed. Images of AI Challenger's
    own format have no size. Raises ValueError that names the file if it is in another format.
    """
    content, _ = read_coco(file)
    listed, annotations, categories = coco_lists(content, file)
    audit, images, kept = Audit(file), list[dict](), list[dict]()
    for entry in listed:
        if isinstance(entry, dict) and is_image_id(entry.get("id")):
            images.append(entry)
        else:
            audit.bad("image_entry", f"needs an id, an integer from 0 to 2**63 - 1: {entry!r:.80}")
    if is_own_format(read_json(file)):  # its conversion knows none, and training reads those that are not written
        images = [{key: value for key, value in image.items() if key not in ("width", "height")} for image in images]
    ids = {image["id"] for image in images}
    for entry in annotations:
        if not isinstance(entry, dict) or not is_int(entry.get("id")) or not is_int(entry.get("image_id")):
            audit.bad("annotation_entry", f"needs an integer id and image_id: {entry!r:.80}")
        elif entry["image_id"] not in ids:
            audit.bad("annotation_without_image", f"id {entry['id']}, image {entry['image_id']}")
        else:
            kept.append(entry)
    if audit.counts:
        print(f"{file}: left out: {format_counts(audit.counts)}")
    return {"images": images, "annotations": kept, "categories": categories}


def divide(contents: dict[str, dict], folds: int) -> list[dict[str, dict]]:
    """By fold `{"train": ..., "val": ...}` of the images of all files, given by name, in a fixed random order.

    The contents are those of `read_placeable`.

    Raises ValueError, naming the files, if their categories differ or an id comes twice, or if there are fewer than two
    folds or images for them.
    """
    names = ", ".join(contents)
    whole = {
        key: [entry for content in contents.values() for entry in content[key]] for key in ("images", "annotations")
    }
    categories = [content["categories"] for content in contents.values()]
    if any(other != categories[0] for other in categories):
        raise ValueError(f"{names}: their categories differ, so that they are not of one joint set")
    for key, entries in whole.items():
        if len({entry["id"] for entry in entries}) < len(entries):
            raise ValueError(f"{names}: an id of {key} comes twice; files of one data set are needed")
    if not 2 <= folds <= len(whole["images"]):
        raise ValueError(f"folds={folds}: must be at least 2, and at most the {len(whole['images'])} images of {names}")
    order = np.random.default_rng(0).permutation(len(whole["images"]))
    fold_of = {whole["images"][i]["id"]: place % folds for place, i in enumerate(order)}
    return [
        {"train": _part(whole, categories[0], fold_of, k, False), "val": _part(whole, categories[0], fold_of, k, True)}
        for k in range(folds)
    ]


def _part(whole: dict, categories: list, fold_of: dict, k: int, inside: bool) -> dict:
    images = [image for image in whole["images"] if (fold_of[image["id"]] == k) == inside]
    annotations = [entry for entry in whole["annotations"] if (fold_of[entry["image_id"]] == k) == inside]
    return {"images": images, "annotations": annotations, "categories": categories}
