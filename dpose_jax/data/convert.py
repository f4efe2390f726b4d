"""Converts a YOLO-pose set to COCO's format, and makes a joint set of the names in an annotation file.

python -m dpose_jax.data.convert --yolo=DATA.yaml --out=DIR
python -m dpose_jax.data.convert --joint_set_from=ANNOTATIONS.json --out=JOINTS.json

The first writes `train.json`, `val.json` (and `test.json`) and `joints.json`, copies no image, and prints the flags to
train with. Malformed lines are left out; the first 100 of a rule are named as `problem: split: rule: file:line`, the
others counted. The exit status is then 1.
"""

import dataclasses
import os
import sys
from typing import NamedTuple

from absl import flags

from dpose_jax.data import yolo
from dpose_jax.data.categories import listed_categories, person_category
from dpose_jax.data.coco_format import Audit, read_coco
from dpose_jax.pose.joint_names import suggested
from dpose_jax.pose.joint_sets import JointSet, Pair
from dpose_jax.runtime import app
from dpose_jax.workdir.files import placed, write_json


class Converted(NamedTuple):
    """How much a written split holds, and what was left out."""

    images: int
    persons: int
    audit: Audit


def convert_yolo(file: str, out: str) -> tuple[yolo.YoloSet, dict[str, Converted]]:
    """Writes the splits of a YOLO-pose set and its joint set into the folder `out`.

    Raises FileNotFoundError or ValueError, with file and field, before it writes, if `data.yaml` is malformed, or a
    split has no labels or no usable line.
    """
    found = yolo.read_yolo(file)
    contents = {split: yolo.to_coco(found, split) for split in found.splits}
    for split, (content, audit) in contents.items():
        if not content["annotations"]:
            bad = {rule: audit.counts[rule] for rule in yolo.MALFORMED if audit.counts[rule]}
            first = next((f"; the first: {audit.first[rule][0]}" for rule in bad), "; all label files are empty")
            raise ValueError(f"{file}: {split}: no line of labels is usable: {bad}{first}")
    for split, (content, _) in contents.items():
        write_json(os.path.join(out, f"{split}.json"), content, indent=None)
    write_json(os.path.join(out, "joints.json"), dataclasses.asdict(found.joint_set))
    return found, {
        split: Converted(len(content["images"]), len(content["annotations"]), audit)
        for split, (content, audit) in contents.items()
    }


def joint_set_of(file: str, category: str | None = None) -> tuple[JointSet, list[str]]:
    """The joint set of the person's category in a COCO-format file, and sentences on what to check in it.

    `category` names it, see `person_category`. Limbs are its `skeleton`, whose indices start at 1 as COCO's unless one
    is 0. For the rest see `joint_names.suggested`. Raises FileNotFoundError, or ValueError that names the file.
    """
    content, _ = read_coco(file)
    listed = content.get("categories") if isinstance(content, dict) else None
    person = person_category(listed_categories(listed), category, file, "--category")
    if not person.keypoints:
        raise ValueError(f"{file}: category {person} has no list of keypoints, of which to make a joint set")
    entry = next(each for each in listed or () if isinstance(each, dict) and each.get("id") == person.id)
    limbs, notes = _limbs(entry.get("skeleton"), len(person.keypoints))
    name = os.path.splitext(os.path.basename(file))[0]
    with placed(f"{file}: category {person}"):
        joint_set, more = suggested(name, person.keypoints, limbs)
    return joint_set, notes + more


def _limbs(skeleton, count: int) -> tuple[tuple[Pair, ...], list[str]]:
    listed = skeleton if isinstance(skeleton, list) else []
    pairs = [p for p in listed if isinstance(p, list) and len(p) == 2 and all(type(i) is int for i in p)]
    first = 0 if any(0 in pair for pair in pairs) else 1
    inside = [(a - first, b - first) for a, b in pairs if a != b and first <= min(a, b) and max(a, b) < count + first]
    limbs, notes = tuple(dict.fromkeys(inside)), []
    if limbs and first == 0:
        notes.append("limbs: the skeleton has an index 0, so it counts from 0")
    elif limbs and max(map(max, limbs)) < count - 1:
        notes.append("limbs: the skeleton was taken to count from 1, as COCO's; check")
    if len(inside) < len(listed):
        notes.append(f"limbs: {len(listed) - len(inside)} of {len(listed)} skeleton entries are no pair of joints")
    return limbs, notes


def training_flags(found: yolo.YoloSet, out: str, rotated: int) -> list[str]:
    """The flags that train on a converted set."""
    fields = {"joint_set": os.path.abspath(os.path.join(out, "joints.json")), "data.root": found.root}
    for split in ("train", "val"):
        if split in found.splits:
            fields[f"data.{split}_annotations"] = os.path.abspath(os.path.join(out, f"{split}.json"))
            fields[f"data.{split}_images"] = "."
    if rotated:
        fields["data.orientation"] = "upright"
    if len(found.names) > 1:
        fields["data.category"] = "NAME"
    return [f"--config.{name}={value}" for name, value in fields.items()]


def _convert_and_print(file: str, out: str) -> bool:
    """Prints counts and flags; whether all lines were usable."""
    found, written = convert_yolo(file, out)
    rotated, problems = 0, 0
    for split, (images, persons, audit) in written.items():
        rotated += audit.counts["image_exif_rotated"]
        for rule in yolo.MALFORMED:
            problems += audit.counts[rule]
            for what in audit.first.get(rule, []):
                print(f"problem: {split}: {rule}: {what}")
            if more := audit.counts[rule] - len(audit.first.get(rule, [])):
                print(f"problem: {split}: {rule}: and {more} more")
        counts = ", ".join(f"{rule} {audit.counts[rule]}" for rule in yolo.MALFORMED + yolo.NOTED if audit.counts[rule])
        size = f"{persons} persons in {images} images"
        print(f"{split}: {os.path.join(out, split)}.json: {size}" + (f", {counts}" if counts else ""))
    for name, place in list(found.moved.items())[:3]:
        print(f"{file}: {name!r} is not there; taken: {place!r} ({len(found.moved)} in all)")
    for note in found.notes:
        print(f"joints.json: {note}")
    if len(found.names) > 1:
        print(f"classes: {', '.join(found.names.values())}; choose the persons' by data.category")
    print("train with, for example:")
    lines = ["python train.py --config=configs/coco_w32_256x192.py --workdir=DIR", *training_flags(found, out, rotated)]
    print("  " + " \\\n    ".join(lines))
    return not problems


if __name__ == "__main__":
    YOLO = flags.DEFINE_string("yolo", None, "The data.yaml of a YOLO-pose set.")
    FROM = flags.DEFINE_string("joint_set_from", None, "Instead, a COCO-format file: makes a joint set of its names.")
    CATEGORY = flags.DEFINE_string("category", None, "The persons' in that file, by name or id.")
    OUT = flags.DEFINE_string("out", None, "The folder; with --joint_set_from the .json file.")

    def main():
        if (YOLO.value is None) == (FROM.value is None):
            raise ValueError("give one of --yolo and --joint_set_from")
        if YOLO.value is not None:
            sys.exit(0 if _convert_and_print(YOLO.value, OUT.value) else 1)
        if not OUT.value.endswith(".json"):
            raise ValueError(f"--out={OUT.value!r}: must be a .json file")
        joint_set, notes = joint_set_of(FROM.value, CATEGORY.value)
        write_json(OUT.value, dataclasses.asdict(joint_set))
        names = ", ".join(f"{joint_set.joints[a]}/{joint_set.joints[b]}" for a, b in joint_set.flip_pairs)
        print(
            f"{OUT.value}: {joint_set.num_joints} joints, {len(joint_set.limbs)} limbs; flip pairs: {names or 'none'}"
        )
        for note in notes:
            print(f"check: {note}")

    flags.mark_flag_as_required("out")
    app.run(main)
