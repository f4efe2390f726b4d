"""Persons from ArrayRecord files that `python -m dpose_jax.data.build` wrote, with their annotations as JSON beside."""

import dataclasses
import importlib.util
import os
from typing import Any

import numpy as np

from dpose_jax.data.array_record.crop_margin import Margin
from dpose_jax.data.coco_dataset import AnnotatedSource
from dpose_jax.data.crop import part_window
from dpose_jax.data.image_files import ImageStore, decode_image
from dpose_jax.data.jpeg_parts import Window
from dpose_jax.data.sample import Person
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.workdir.files import SHORT, placed, read_json, sha256

_MALFORMED = (KeyError, TypeError, ValueError, OverflowError)  # what JSON of another form raises where it is used
NAME, VERSION = "coco_keypoints", "1.0.0"  # of the TFDS data set


def records_folder(root: str, kind: str) -> str:
    """Where TFDS puts the records of a kind (`full` or `crops`) under its data folder."""
    return os.path.join(root, NAME, kind, VERSION)


def check_installed() -> None:
    """Raises ValueError if the extra that records need is not installed; imports nothing."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise ValueError('records need TensorFlow Datasets (without TensorFlow): pip install -e ".[records]"')


class _Records(ImageStore):
    """The stored images of a split, opened by each process when first read."""

    def __init__(self, folder: str, split: str, upright: bool):
        check_installed()
        super().__init__(os.path.join(folder, split), upright=upright)
        self._folder, self._split = folder, split
        self.index_file = os.path.join(folder, f"{split}_index.json")
        with placed(f"{self.index_file}: no index of records", _MALFORMED):
            self.index: dict[str, Any] = dict(read_json(self.index_file))
            self._rows = {name: row for row, name in enumerate(self.index.pop("images"))}
            self.index["unreadable"] = dict(self.index["unreadable"])
        self._opened: Any = None

    def __getstate__(self):
        return self.__dict__ | {"_opened": None}

    def _has(self, name: str) -> bool:
        return name in self._rows or name in self.index["unreadable"]

    def read(self, name: str) -> bytes:
        if name in self.index["unreadable"]:
            raise ValueError(f"unreadable when the records were built: {self.index['unreadable'][name]}")
        return self.at(self._rows[name], "file_name", name.encode())

    def at(self, row: int, field: str, value: Any) -> bytes:
        """The encoded image of the record whose `field` has that value; ValueError if it is another or damaged."""
        try:
            found, image = self._record(row, field)
        # What ArrayRecord, TFDS and protobuf raise for broken bytes is open-ended.
        except Exception as error:
            why = " ".join(str(error).split())
            raise ValueError(f"record {row} of {self._folder} is damaged: {why or type(error).__name__}") from error
        if found != value:
            raise ValueError(f"record {row} of {self._folder} has {field} {found!r}, its index says {value!r}")
        return image

    def _record(self, row: int, field: str) -> tuple[Any, bytes]:
        """A field of a record and its encoded image."""
        # TFDS takes a second to import, and only records need it. Its decoding of a whole record takes longer than the
        # JPEG of a crop.
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_pb2

        if self._opened is None:
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._opened = tfds.builder_from_directory(self._folder).as_data_source(self._split, deserialize_method=raw)
        features = tf_example_pb2.Example.FromString(self._opened[row]).features.feature
        found = (*features[field].bytes_list.value, *features[field].int64_list.value)
        return found[0], features["image"].bytes_list.value[0]


class RecordSource(AnnotatedSource):
    """A split of `full` records: the persons and pixels of the folder. `options` are AnnotatedSource's.

    Raises ValueError if a file of JSON is not the one that was built, or the build had another `data.orientation`.
    """

    def __init__(self, folder: str, split: str, joint_set: JointSet, *, upright: bool = False, **options):
        build, wanted = read_build(folder), "upright" if upright else "stored"
        if build["orientation"] != wanted:
            built = f"was built with data.orientation={build['orientation']!r}"
            raise ValueError(f"{folder}/build.json: {built}, the recipe has {wanted!r}")
        for name in (f"{split}_annotations.json", f"{split}_index.json"):
            path = os.path.join(folder, name)
            if build["files"].get(name, found := sha256(path)) != found:
                raise ValueError(f"{path}: is damaged or was changed, its SHA-256 is not that in build.json")
        self._records = _Records(folder, split, upright)
        super().__init__(os.path.join(folder, f"{split}_annotations.json"), self._records, joint_set, **options)


class CropSource(RecordSource):
    """A split of `crops` records: the image around each person.

    ValueError if built for less than `margin`, or shrunk to fewer rows than `height`, those of the crop to make.
    """

    def __init__(self, folder: str, split: str, joint_set: JointSet, *, margin: Margin, height: int, **options):
        path, build = os.path.join(folder, "build.json"), read_build(folder)
        with placed(f"{path}: no margin of crops", (KeyError, TypeError)):
            built = build["margin"]
            Margin(**built | {"upper_body": tuple(built["upper_body"])}).check_covers(margin, path)
            if height > (most := build.get("max_height") or height):
                raise ValueError(
                    f"{path}: the stored crops were shrunk to max_height={most} rows, input_size has {height}; build "
                    "them with this recipe, or use data.source='full'"
                )
        super().__init__(folder, split, joint_set, **options)
        with placed(f"{self._records.index_file}: no index of crops", _MALFORMED):
            index = self._records.index
            persons = index.pop("persons")
            rows = {person: row for row, person in enumerate(persons)}
            if len(rows) < len(persons):
                raise ValueError("a person is listed twice")
            # -1 for the persons of unreadable images.
            self._rows = np.array([rows.get(person, -1) for person in self._ids.tolist()], np.int32)
            self._origins = np.array(index.pop("origins"), np.int32).reshape(len(rows), 2)
            self._scales = np.array(index.pop("scales", [(1.0, 1.0)] * len(rows)), np.float64).reshape(len(rows), 2)
            if not ((self._scales > 0) & (self._scales <= 1)).all():
                raise ValueError("scales must be above 0 and at most 1")

    def __getitem__(self, index: int) -> Person:
        person, row = super().__getitem__(index), self._rows[index]
        if row < 0:
            return person
        return dataclasses.replace(
            person, origin=tuple(self._origins[row].tolist()), scale=tuple(self._scales[row].tolist())
        )

    def _decode(self, index: int, window: Window | None) -> np.ndarray:
        """The stored part of the image; see Person.origin."""
        row = int(self._rows[index])
        if row < 0:
            return super()._decode(index, window)
        data = self._records.at(row, "id", int(self._ids[index]))
        return decode_image(data, window=window and part_window(window, self._origins[row], self._scales[row]))


def read_build(folder: str) -> dict:
    """What the records in a folder were built from; FileNotFoundError if there are none, or only unfinished ones."""
    path = os.path.join(folder, "build.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{folder}: no finished records; `python -m dpose_jax.data.build` makes them")
    built = read_json(path, SHORT)
    if not isinstance(built, dict) or not isinstance(built.get("files", {}), dict):
        raise ValueError(f"{path}: must be an object, with an object `files`, as the build wrote it")
    return {"orientation": "stored", "files": {}} | built  # what the first builds do not say
