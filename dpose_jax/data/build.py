"""Stores a data set as ArrayRecord files, which are read faster than a folder.

python -m dpose_jax.data.build --config=configs/coco_w32_256x192.py --config.data.root=COCO --out=DIR [--kind=crops]

Train with `--config.data.source=KIND --config.data.root=DIR`; see docs/records.md. A finished build is kept.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator

from absl import flags

from dpose_jax.data.array_record import writer
from dpose_jax.data.array_record.crop_margin import Margin
from dpose_jax.data.array_record.reader import VERSION, check_installed, read_build, records_folder
from dpose_jax.data.coco_dataset import FolderSource
from dpose_jax.data.coco_format import format_counts, read_coco
from dpose_jax.data.datasets import SPLITS, data_root
from dpose_jax.data.jpeg_parts import check_jpegtran
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app
from dpose_jax.workdir import recipe_flags
from dpose_jax.workdir.files import read_json, sha256, write_bytes, write_json


def build(
    recipe: Recipe, out: str, kind: str, quality: int = 90, *, max_height: int | None = None, tiles: bool = False
) -> dict:
    """Stores both splits of the folder that `recipe.data` describes; returns `report.json`, by split counts by rule.

    For the kind `crops` the recipe's `input_size`, `crop` and `augment` determine how much is kept around a person, as
    a JPEG of `quality` 1 to 100, shrunk where the plain crop has more rows than `max_height`. With `tiles` those of
    `full` are rewritten by `jpeg_parts.with_tiles`. Raises FileNotFoundError, or ValueError if an argument is out of
    range, the data breaks the rules, too many images are unreadable, `out` holds records that were built from something
    else, another process builds there now, or the extra `records` or jpegtran is not installed.
    """
    if kind not in writer.KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {writer.KINDS}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality}: must be in 1..100")
    if max_height is not None and (kind != "crops" or max_height < recipe.input_size[0]):
        least = f"at least the {recipe.input_size[0]} rows of input_size"
        raise ValueError(f"max_height={max_height}: must be {least}, and is for kind='crops', not {kind!r}")
    if tiles and kind != "full":
        raise ValueError(f"tiles=True: is for kind='full', not {kind!r}")
    check_installed()
    if recipe.data.source != "folder":
        raise ValueError(f"data.source={recipe.data.source!r}: records are built from a 'folder'")
    folder = records_folder(out, kind)
    cut = writer.Cut(Margin.of(recipe, training=True), quality, max_height) if kind == "crops" else None
    # What decides the content of the records.
    metadata: dict = {"kind": kind, "version": VERSION, "joints": recipe.joints.joints}
    metadata["orientation"] = recipe.data.orientation
    metadata |= dataclasses.asdict(cut) if cut else {"tiles": True} if tiles else {}
    if "tiles" in metadata:
        check_jpegtran()
    if recipe.data.category is not None:
        metadata["category"] = recipe.data.category
    for split in SPLITS:
        file = recipe.data.annotations(split)
        checksum = sha256(os.path.join(data_root(recipe.data), file))
        metadata[split] = {"annotations": file, "sha256": checksum, "images": recipe.data.images(split)}
    metadata = json.loads(json.dumps(metadata))  # as build.json gives it back
    staging = os.path.join(out, f".{kind}.unfinished")
    with _locked(out, kind):
        if os.path.exists(folder):
            _check_same(read_build(folder), metadata, folder)
            print(f"{folder} is finished")
        else:
            shutil.rmtree(staging, ignore_errors=True)
            _write(recipe, records_folder(staging, kind), kind, cut, metadata)
            os.renames(records_folder(staging, kind), folder)  # makes folders and drops those that it leaves empty
    return read_json(os.path.join(folder, "report.json"))


def _write(recipe: Recipe, folder: str, kind: str, cut: writer.Cut | None, metadata: dict) -> None:
    data, root = recipe.data, data_root(recipe.data)
    sources, splits = {}, {}
    for name in SPLITS:
        files, training = (data.annotations(name), data.images(name)), name == "train"
        options: dict = {"upright": data.orientation == "upright", "training": training, "category": data.category}
        sources[name] = FolderSource(root, *files, recipe.joints, max_bad_share=data.max_bad_share, **options)
        # Detected boxes, which only validation has, may lie in images without annotated persons.
        kept: dict = {"with_empty": cut is None and name == "val", "tiles": "tiles" in metadata}
        splits[name] = writer.SplitRecords(sources[name], data, cut, **kept)
    writer.write_records(folder, kind, recipe.joints.num_joints, splits)
    for name, split in splits.items():
        # In COCO's format, which holds the sizes that a folder in AI Challenger's format reads from its images.
        content, _ = read_coco(os.path.join(root, data.annotations(name)), sources[name].folder)
        write_bytes(os.path.join(folder, f"{name}_annotations.json"), json.dumps(content).encode())
        write_json(os.path.join(folder, f"{name}_index.json"), split.index, indent=None)
    write_json(os.path.join(folder, "report.json"), {name: split.counts for name, split in splits.items()})
    written = [f"{name}_{content}.json" for name in splits for content in ("annotations", "index")]
    checksums = {name: sha256(os.path.join(folder, name)) for name in written}
    write_json(os.path.join(folder, "build.json"), metadata | {"files": checksums})


def _check_same(built: dict, wanted: dict, folder: str) -> None:
    for key in (built | wanted).keys() - {"files"}:
        if built.get(key) != wanted.get(key):
            raise ValueError(
                f"{folder} holds records of another build: {key} is {built.get(key)}, asked for {wanted.get(key)}; "
                "choose another --out, or delete it"
            )


@contextlib.contextmanager
def _locked(out: str, kind: str) -> Iterator[None]:
    """Keeps a second process from building the same; the system frees the lock of a process that dies."""
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, f".{kind}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"--out={out}: another process builds {kind!r} there now") from error
        yield


def format_report(report: dict) -> str:
    """The counters that are not zero, a line a split."""
    return "\n".join(
        f"{split}: kept {counts['kept']} of {counts['records']} annotations, {format_counts(counts)}".rstrip(", ")
        for split, counts in report.items()
    )


if __name__ == "__main__":
    CONFIG = recipe_flags.define("A file of configs/.")
    OUT = flags.DEFINE_string("out", None, "The data set's own folder for records.")
    KIND = flags.DEFINE_enum("kind", "full", writer.KINDS, "Whole images, or a cut around each person.")
    QUALITY = flags.DEFINE_integer("quality", 90, "Of the JPEGs of crops, 1 to 100.")
    MAX_HEIGHT = flags.DEFINE_integer("max_height", None, "Of crops: shrinks persons whose plain crop has more rows.")
    TILES = flags.DEFINE_bool(
        "tiles", False, "Rewrite the JPEGs of full, by jpegtran, so that parts are decoded alone."
    )
    flags.mark_flags_as_required(["config", "out"])

    def main():
        options = {"max_height": MAX_HEIGHT.value, "tiles": TILES.value}
        print(format_report(build(Recipe.from_config(CONFIG.value), OUT.value, KIND.value, QUALITY.value, **options)))

    app.run(main)
