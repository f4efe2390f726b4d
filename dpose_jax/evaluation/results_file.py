"""Scores a results file against an annotation file."""

from typing import Any

import numpy as np

from dpose_jax.data.categories import PERSON, Category, listed_categories, person_category
from dpose_jax.data.coco_format import (
    BOX_AREA,
    area_of_box,
    check_joint_names,
    has_area,
    is_int,
    is_own_format,
    numbers,
    read_coco,
)
from dpose_jax.data.exports import as_results
from dpose_jax.evaluation.aic import results_from_native
from dpose_jax.evaluation.mean_pose import score_mean_pose
from dpose_jax.evaluation.metrics import PCK_LENGTH, score
from dpose_jax.evaluation.results_check import check_inputs
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.workdir.files import read_json, sha256

# Data sets, and whether the scale of OKS is the annotated area; CrowdPose and AI Challenger annotate none.
DATASETS = {"coco": True, "crowdpose": False, "aic": False}


def score_files(
    annotations: str,
    results: str,
    joint_set: JointSet,
    *,
    use_area: bool,
    engine: str = "hotcoco",
    category: str | None = None,
) -> dict[str, Any]:
    """All metrics of a results file, in COCO's or AI Challenger's format, as the annotations.

    `category` names the persons', see `person_category`. As in training, annotations of other categories and persons
    without a list of joints are left out, and counted in the protocol; so are results of other categories with joints.
    The scale of OKS is the annotated area with `use_area`, otherwise 0.53 w h of the box. Returns `{**metrics,
    "joints": {joint: {AP, PCK@0.2, PCK@0.1}}, "mean_pose": {...}, "protocol": {...}}`, see `metrics.score` and
    `mean_pose.score_mean_pose`. Prints, and counts in `protocol["left_out"]`, which entries of AI Challenger's
    submission do not count, see `aic.results_from_native`. `protocol["read"]` counts what was read otherwise than
    written, see `exports.as_coco`, and as `area_from_box` areas that are no positive number, for which
    `area_of_box` stands in, as in training and evaluation.

    Raises FileNotFoundError, or ValueError that names file and entry if a file is cut short, in another format, does
    not fit the joint set (`check_joint_names`), or breaks a rule of `check_inputs`.
    """
    (truth, read), found = read_coco(annotations), read_json(results)
    if not is_own_format(found):
        read.update(as_results(found, truth.get("images") if isinstance(truth, dict) else None))
    left_out: dict[str, int] = {}
    if isinstance(truth, dict) and all(isinstance(truth.get(key), list) for key in ("annotations", "categories")):
        listed = listed_categories(truth.get("categories"))
        person = person_category(listed, category, annotations, "--category")
        if person.keypoints:
            check_joint_names(list(person.keypoints), joint_set, annotations)
        strangers: dict[str, int] = {}
        if is_own_format(found) and isinstance(truth.get("images"), list):
            found, strangers = _of_submission(found, truth["images"], person, results)
        truth, found, left_out = _of_persons(truth, found, person, [c.id for c in listed if c.keypoints])
        read["area_from_box"] = _fill_areas(truth["annotations"]) if use_area else 0
        left_out |= strangers
    inputs = check_inputs(truth, found, joint_set, use_area=use_area, names=(annotations, results))
    metrics, joints = score(inputs, engine=engine, name=annotations)
    protocol = {
        "annotations": annotations,
        "annotations_sha256": sha256(annotations),
        "results": results,
        "results_sha256": sha256(results),
        "joint_set": joint_set.name,
        "engine": engine,
        "area": "annotated" if use_area else f"{BOX_AREA} w h of the box",
        "left_out": left_out,
        "read": {rule: count for rule, count in read.items() if count},
        "images": len(inputs.images),
        "persons": sum(not a["iscrowd"] and a["num_keypoints"] > 0 for a in inputs.annotations),
        "predicted": len(inputs.results),
        "pck_length": PCK_LENGTH,
        "pck_match": "best assignment by OKS",
    }
    baseline = score_mean_pose(inputs, engine=engine)
    return {**metrics, "joints": joints, "mean_pose": baseline, "protocol": protocol}


def _of_submission(found: list, images: list, person: Category, file: str) -> tuple[list[dict], dict[str, int]]:
    """AI Challenger's submission as COCO's results, and by rule how many of its entries do not count; prints these."""
    rows, strangers = results_from_native(found, images, file)
    for rule, names in strangers.items():
        print(f"{file}: {rule}: {len(names)} left out, such as {', '.join(map(repr, names[:3]))}")
    return [row | {"category_id": person.id} for row in rows], {rule: len(names) for rule, names in strangers.items()}


def _fill_areas(annotations: list) -> int:
    """Gives annotations whose `area` cannot be a scale of OKS that of their box; returns how many."""
    count = 0
    for entry in annotations:
        if isinstance(entry, dict) and not has_area(entry):
            box = numbers(entry.get("bbox"), 4)
            if box is not None and np.isfinite(box).all():
                entry["area"], count = area_of_box(box), count + 1
    return count


def _of_persons(truth: dict, results: Any, person: Category, posed: list[int]) -> tuple[dict, Any, dict[str, int]]:
    """Both sides without what is no person, and the counts of what was left out; `posed` categories have joints.

    What is malformed stays, for `check_inputs` to name; so do results of a category without joints.
    """
    of_person, boxes_only = [], 0
    for entry in truth["annotations"]:
        number = entry.get("category_id", person.id) if isinstance(entry, dict) else person.id
        if is_int(number) and number != person.id:
            continue
        if isinstance(entry, dict) and not entry.get("keypoints") and not entry.get("iscrowd"):
            boxes_only += 1
        else:
            of_person.append({"category_id": person.id} | entry if isinstance(entry, dict) else entry)
    others = len(truth["annotations"]) - len(of_person) - boxes_only
    kept = results
    if isinstance(results, list) and len(posed) > 1:
        away = set(posed) - {person.id}
        kept = [r for r in results if not isinstance(r, dict) or not is_int(i := r.get("category_id")) or i not in away]
    counts = {
        "other_category": others,
        "box_only": boxes_only,
        "results_of_others": 0 if kept is results else len(results) - len(kept),
    }
    mine = {"id": person.id, "name": person.name or PERSON}
    return truth | {"annotations": of_person, "categories": [mine]}, kept, {k: n for k, n in counts.items() if n}
