"""What annotation tools write otherwise than COCO, read as COCO's format where it can mean one thing only (ours)."""

import collections
import contextlib
import re
from operator import itemgetter
from typing import Any

from dpose_jax.data.image_files import ImageStore, parts
from dpose_jax.typed_fields import LARGEST

_DIGITS = re.compile(r"[0-9]{1,19}", re.ASCII)
_MARGIN = 0.1  # of the longer side: around the joints of a person without a box


def as_coco(content: Any, store: ImageStore | None = None) -> collections.Counter[str]:
    """Changes parsed JSON in place, and counts how often; what it cannot read stays for the reader's checks to name.

    `id_converted`: an id written as text of digits or with a decimal point becomes an integer; a text `category_id`
    only if the category's own id is text. `image_renamed`: `file_name` becomes the name in the `store`, see
    `ImageStore.find`; `path` stands in for a missing one. `image_size_read`: a missing size is that of the image.
    `box_from_joints`: a missing or empty `bbox` becomes the extent of the labelled joints, see `box_of_joints`.
    """
    counts: collections.Counter[str] = collections.Counter()
    if not isinstance(content, dict):
        return counts
    images, annotations, categories = (
        [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed := content.get(name), list) else []
        for name in ("images", "annotations", "categories")
    )
    texts = {_integer(entry["id"]) for entry in categories if isinstance(entry.get("id"), str)}
    for entry in categories:
        _convert(entry, "id", counts)
    for entry in images:
        _convert(entry, "id", counts)
        for side in ("width", "height"):
            if isinstance(entry.get(side), float):
                entry[side] = _integer(entry[side])
        if not entry.get("file_name") and isinstance(entry.get("path"), str):
            entry["file_name"] = entry["path"]
    if store is not None:
        _find_files(images, store, counts)
        _read_sizes(images, store, counts)
    for entry in images:
        entry.pop("path", None)  # of another machine, and read by nothing else
    for entry in annotations:
        for field in ("id", "image_id"):
            _convert(entry, field, counts)
        number = entry.get("category_id")
        if not isinstance(number, str) or _integer(number) in texts:
            _convert(entry, "category_id", counts)
        if (box := box_of_joints(entry)) is not None:
            entry["bbox"] = box
            counts["box_from_joints"] += 1
    return counts


def as_results(rows: Any, images: Any = None) -> collections.Counter[str]:
    """Changes detections or results in place, and counts how often.

    `id_converted`: `image_id` "12" or 12.0 becomes 12, and a `category_id` 1.0 becomes 1. `image_by_name`: another text
    as `image_id` becomes the id of the one of `images`, entries of annotations, whose file is called so, with or
    without ending and folders.
    """
    counts: collections.Counter[str] = collections.Counter()
    with contextlib.suppress(KeyError, TypeError):  # of 100,000 rows, looking at each alone takes 0.1 s
        if {type(number) for field in ("image_id", "category_id") for number in map(itemgetter(field), rows)} <= {int}:
            return counts
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    for row in rows:
        _convert(row, "image_id", counts)
        if isinstance(row.get("category_id"), float):
            _convert(row, "category_id", counts)
    by_name = _ids_by_name(images) if any(isinstance(row.get("image_id"), str) for row in rows) else {}
    for row in rows:
        if isinstance(name := row.get("image_id"), str) and (number := by_name.get(parts(name))) is not None:
            row["image_id"] = number
            counts["image_by_name"] += 1
    return counts


def _ids_by_name(images: Any) -> dict[tuple[str, ...], Any]:
    """Ids of image entries by the `parts` of what their files may be called; None for a name of several."""
    found: dict[tuple[str, ...], Any] = {}
    for entry in images if isinstance(images, list) else []:
        if isinstance(entry, dict) and isinstance(name := entry.get("file_name"), str) and (path := parts(name)):
            stem = (*path[:-1], path[-1].rpartition(".")[0] or path[-1])
            for called in {path, stem, path[-1:], stem[-1:]}:
                found[called] = None if found.get(called, entry.get("id")) != entry.get("id") else entry.get("id")
    return found


def _integer(value: Any) -> Any:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST:
        return int(value)
    return value


def _convert(entry: dict, field: str, counts: collections.Counter[str]) -> None:
    value = entry.get(field)
    if isinstance(value, str | float):
        entry[field] = _integer(value)
        if isinstance(entry[field], int):
            counts["id_converted"] += 1


def _find_files(images: list[dict], store: ImageStore, counts: collections.Counter[str]) -> None:
    """Gives images the names of the store's files; where two names would mean one file, both stay as they are."""
    found: list[tuple[dict, str, str]] = []
    asked: dict[str, set[tuple]] = collections.defaultdict(set)
    for entry in images:
        name, path = entry.get("file_name"), entry.get("path")
        path = path if isinstance(path, str) else None
        if isinstance(name, str) and name:
            file = store.find(name, path)
            if file is not None and file != name:
                found.append((entry, name, file))
            if file is not None:
                asked[file].add((name, None if file == name else path))
    for entry, _, file in found:
        if len(asked[file]) == 1:
            entry["file_name"] = file
            counts["image_renamed"] += 1


def _read_sizes(images: list[dict], store: ImageStore, counts: collections.Counter[str]) -> None:
    for entry in images:
        if None in (entry.get("width"), entry.get("height")) and isinstance(name := entry.get("file_name"), str):
            if (size := store.size(name)) is not None:
                entry["width"], entry["height"] = size
                counts["image_size_read"] += 1


def box_of_joints(entry: dict) -> list[float] | None:
    """x, y, width, height in pixels of an annotation whose `bbox` is missing or empty; None for another annotation.

    It is the extent of the labelled joints, extended by a tenth of the longer side. A box is empty if it is null, [],
    four zeros, or has no area and is the very extent of the joints, as of two joints side by side. None too for a
    crowd, and if the joints are malformed or all labelled ones lie in one place.
    """
    box = entry.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)):
        if min(box[2:]) != 0:
            return None
    elif box is not None and box != []:
        return None
    joints = entry.get("keypoints")
    if entry.get("iscrowd") or not isinstance(joints, list) or len(joints) % 3 or not all(map(_is_number, joints)):
        return None
    labelled = [(x, y) for x, y, v in zip(joints[::3], joints[1::3], joints[2::3], strict=True) if v > 0]
    if not labelled:
        return None
    (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*labelled, strict=True))
    extent, longer = (left, top, right - left, bottom - top), max(right - left, bottom - top)
    if box and any(box) and any(abs(side - given) > 1 for side, given in zip(extent, box, strict=True)):
        return None
    margin = _MARGIN * longer
    return [left - margin, top - margin, extent[2] + 2 * margin, extent[3] + 2 * margin] if longer > 0 else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST
