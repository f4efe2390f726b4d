"""Stores a data set as ArrayRecord files, which are read faster than a folder.

python -m dpose_jax.data.build --config=configs/coco_w32_256x192.py --config.data.root=COCO --out=DIR [--kind=crops]

Reads the folder that the config describes and writes DIR/coco_keypoints/KIND/1.0.0: the records, the annotations, an
index, `build.json` (what the records were built from) and `report.json` (what was dropped, and why). Train on them
with `--config.data.source=KIND --config.data.root=DIR`. A build that was stopped starts anew; a finished one is left
as it is.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from dpose_jax.data.array_record.crop_margin import Margin
from dpose_jax.data.array_record.reader import VERSION, check_installed, read_build, records_folder
from dpose_jax.data.array_record.writer import KINDS, SplitRecords
from dpose_jax.data.coco_dataset import FolderSource
from dpose_jax.data.coco_format import read_coco
from dpose_jax.data.datasets import SPLITS, data_root
from dpose_jax.data.image_files import ImageFolder
from dpose_jax.pose.joint_sets import get_joint_set
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app
from dpose_jax.workdir.files import read_json, sha256, write_bytes, write_json

# About 250 MB a file at COCO's sizes.
_RECORDS_A_FILE = {"full": 1500, "crops": 5000}


def build(config: Recipe, out: str, kind: str, quality: int = 90) -> dict:
    """Stores both splits of the folder that `config.data` describes; shows a progress bar.

    Args:
      config: the recipe. For `crops` its `input_size`, `crop` and `augment` say how much is kept around a person.
      out: the data set's own folder for records.
      kind: `full` or `crops`.
      quality: of the JPEGs of `crops`, 1 to 100.

    Returns:
      `report.json`: counts by rule, of each split.

    Raises:
      ValueError: if an argument is out of range, the data breaks the rules, too many images are unreadable, `out`
        holds records that were built from something else, another process builds there now, or the extra `records`
        is not installed.
      FileNotFoundError: if a folder or file does not exist.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {KINDS}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality}: must be in 1..100")
    check_installed()
    if config.data.source != "folder":
        raise ValueError(f"data.source={config.data.source!r}: records are built from a 'folder'")
    folder = records_folder(out, kind)
    facts = _facts(config, kind, quality)
    staging = os.path.join(out, f".{kind}.unfinished")
    with _alone(out, kind):
        if os.path.exists(folder):
            _check_same(read_build(folder), facts, folder)
            print(f"{folder} is finished")
        else:
            shutil.rmtree(staging, ignore_errors=True)
            _write(config, staging, kind, quality, facts)
            os.makedirs(os.path.dirname(folder), exist_ok=True)
            os.replace(records_folder(staging, kind), folder)
            shutil.rmtree(staging)
    return read_json(os.path.join(folder, "report.json"))


def _write(config: Recipe, staging: str, kind: str, quality: int, facts: dict) -> None:
    from dpose_jax.data.array_record.tfds_builder import CocoKeypoints

    joint_set = get_joint_set(config.joint_set)
    cut = (Margin.of(config, joint_set, training=True), joint_set, quality) if kind == "crops" else None
    splits, folders = {}, {}
    for name in SPLITS:
        annotations, images = config.data.annotations(name), config.data.images(name)
        share = config.data.max_bad_share
        source = FolderSource(
            data_root(config), annotations, images, joint_set, max_bad_share=share, training=name == "train"
        )
        folders[name] = ImageFolder(os.path.join(data_root(config), images))
        # Detected boxes, which only validation has, may lie in images without annotated persons.
        whole = kind == "full" and name == "val"
        splits[name] = SplitRecords(
            source, folders[name], whole=whole, cut=cut, workers=config.data.workers, max_bad_share=share
        )
    builder = CocoKeypoints(
        splits=splits, joint_set=joint_set, config=kind, data_dir=staging, file_format="array_record"
    )
    target = records_folder(staging, kind)
    builder.write(_RECORDS_A_FILE[kind], lambda name, split: tqdm(split, desc=name, unit="image", dynamic_ncols=True))
    for name, split in splits.items():
        # As COCO's, so that a folder in AI Challenger's format need not be asked for sizes again.
        content = read_coco(_annotation_file(config, name), folders[name].size)
        write_bytes(os.path.join(target, f"{name}_annotations.json"), json.dumps(content).encode())
        write_json(os.path.join(target, f"{name}_index.json"), split.index, indent=None)
    write_json(os.path.join(target, "report.json"), {name: split.counts for name, split in splits.items()})
    write_json(os.path.join(target, "build.json"), facts)


def _annotation_file(config: Recipe, split: str) -> str:
    return os.path.join(data_root(config), config.data.annotations(split))


def _facts(config: Recipe, kind: str, quality: int) -> dict:
    """What decides the content of the records, JSON values."""
    joint_set = get_joint_set(config.joint_set)
    facts: dict = {"kind": kind, "version": VERSION, "joints": list(joint_set.joints)}
    if kind == "crops":
        facts |= {"margin": dataclasses.asdict(Margin.of(config, joint_set, training=True)), "quality": quality}
    for split in SPLITS:
        facts[split] = {
            "annotations": config.data.annotations(split),
            "sha256": sha256(_annotation_file(config, split)),
            "images": config.data.images(split),
        }
    return json.loads(json.dumps(facts))


def _check_same(built: dict, asked: dict, folder: str) -> None:
    for key in built | asked:
        if built.get(key) != asked.get(key):
            raise ValueError(
                f"{folder} holds records of another build: {key} is {built.get(key)}, asked for {asked.get(key)}; "
                "choose another --out, or delete it"
            )


@contextlib.contextmanager
def _alone(out: str, kind: str) -> Iterator[None]:
    """Keeps a second process from building the same; the system frees the lock of a process that dies."""
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, f".{kind}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"--out={out}: another process builds {kind!r} there now") from error
        yield


def shown(report: dict) -> str:
    """The counters that are not zero, a line a split."""
    lines = []
    for split, counts in report.items():
        rest = [f"{name} {count}" for name, count in counts.items() if count and name not in ("records", "kept")]
        lines.append(f"{split}: kept {counts['kept']} of {counts['records']} annotations" + ", ".join(["", *rest]))
    return "\n".join(lines)


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
    OUT = flags.DEFINE_string("out", None, "The data set's own folder for records.")
    KIND = flags.DEFINE_enum("kind", "full", KINDS, "Whole images, or a cut around each person.")
    QUALITY = flags.DEFINE_integer("quality", 90, "Of the JPEGs of crops, 1 to 100.")
    flags.mark_flags_as_required(["config", "out"])
    app.run(lambda: print(shown(build(CONFIG.value, OUT.value, KIND.value, QUALITY.value))))
