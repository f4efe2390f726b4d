"""What a set holds: persons, labelled joints, boxes, kinds of images; no pixel is decoded."""

from collections import Counter

import numpy as np

from dpose_jax.data.coco_dataset import AnnotatedSource, FolderSource
from dpose_jax.data.coco_format import format_counts
from dpose_jax.data.doubts import doubts
from dpose_jax.data.mixed import MixedSource
from dpose_jax.data.sample import Source
from dpose_jax.pose.joint_names import odd_pairs
from dpose_jax.pose.joint_sets import JointSet

_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def statistics(source: Source, joint_set: JointSet) -> dict:
    """Counts the persons of a source, as JSON values.

    `persons`, `images`, `persons_an_image` {count: images}, `labelled_joints` {count: persons}, `joints` {name:
    {labelled, visible, occluded, share: of persons that have it labelled}}, `boxes` {side: sqrt(w h), width, height, in
    pixels, and aspect: w / h; each {percentile: value}}, and `report`, the source's counters (a folder's IMAGE_NOTES).
    """
    persons = [source[index] for index in range(len(source))]
    visibility = np.stack([person.keypoints[:, 2] for person in persons])
    boxes = np.stack([person.bbox for person in persons]).astype(np.float64)
    labelled = visibility > 0
    an_image = Counter(Counter(person.image_id for person in persons).values())
    kinds = {"labelled": labelled, "visible": visibility == 2, "occluded": visibility == 1}
    joints: dict[str, dict] = {}
    for j, name in enumerate(joint_set.joints):
        joints[name] = {kind: int(applies[:, j].sum()) for kind, applies in kinds.items()}
        joints[name]["share"] = round(float(labelled[:, j].mean()), 4)
    notes: Counter[str] = Counter()
    for part in source.sources if isinstance(source, MixedSource) else (source,):
        notes.update(_notes(part)[1])
    width, height = boxes[:, 2], boxes[:, 3]
    sides = {"side": np.sqrt(width * height), "width": width, "height": height, "aspect": width / height}
    return {
        "persons": len(persons),
        "images": sum(an_image.values()),
        "persons_an_image": dict(sorted(an_image.items())),
        "labelled_joints": dict(sorted(Counter(labelled.sum(axis=1).tolist()).items())),
        "joints": joints,
        "boxes": {
            name: {str(p): round(float(np.percentile(values, p)), 3) for p in _PERCENTILES}
            for name, values in sides.items()
        },
        "report": source.report() | dict(notes),
    }


def _notes(source: Source, most: int | None = None) -> tuple[int, dict[str, int]]:
    return source.image_notes(most) if isinstance(source, FolderSource) else (0, {})


def describe(source: Source, orientation: str, most: int | None = None) -> list[str]:
    """The counters of a source that are not zero, as one line, then sentences: `doubts` and odd flip pairs.

    The headers of a folder's images are read, of all or of `most` spread evenly; of all, their notes are counted too.
    A mix has these lines of each of its sources, after the source's name: the persons of another dilute no doubt.
    """
    if isinstance(source, MixedSource):
        parts = zip(source.names, source.sources, strict=True)
        return [f"{name}: {line}" for name, part in parts for line in describe(part, orientation, most)]
    report, (looked, notes) = source.report(), _notes(source, most)
    counted = report if most else report | notes
    counts = ", ".join(f"{name} {count}" for name, count in counted.items() if count)
    found = doubts(report, notes.get("image_exif_rotated", 0), looked, orientation)
    if isinstance(source, AnnotatedSource):
        found += [f"joint set {source.joint_set.name!r}: {odd}" for odd in odd_pairs(source.joint_set)]
    return [counts, *found]


def format_statistics(title: str, found: dict) -> str:
    """The statistics as a table, with the counters that are not zero."""
    longest = max(len(name) for name in found["joints"])
    lines = [f"{title}: {found['persons']} persons in {found['images']} images"]
    lines.append("  left out or noted: " + (format_counts(found["report"]) or "nothing"))
    lines.append(f"  {'joint':{longest}}  labelled   share  visible  occluded")
    for name, joint in found["joints"].items():
        columns = f"{joint['labelled']:8d}  {joint['share']:6.1%} {joint['visible']:8d}  {joint['occluded']:8d}"
        lines.append(f"  {name:{longest}}  {columns}")
    lines.append(f"  {'box, px':{longest}}  " + "".join(f"{f'{p}%':>8}" for p in _PERCENTILES))
    for name, values in found["boxes"].items():
        lines.append(f"  {name:{longest}}  " + "".join(f"{value:8.5g}" for value in values.values()))
    return "\n".join(lines)
