"""Writes COCO-format keypoints as a TFDS data set of ArrayRecord files; needs no TensorFlow.

There are two kinds, as TFDS configs. `full` has one record an image, with the original bytes. `crops` has one record a
person, with a JPEG of the part of the image that the recipe's augmentation can reach (see `crop_margin.Margin`).
A record holds the persons' annotations too, for other readers of TFDS; `reader.py` takes them from the JSON beside it.
"""

import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from dpose_jax.data.array_record.reader import NAME, VERSION
from dpose_jax.data.array_record.writer import SplitRecords

_CHUNK = 128  # records handed to the writer at once: it rewrites its metadata at every call
_RECORDS_A_FILE = {"full": 1500, "crops": 5000}  # about 250 MB a file at COCO's sizes


def write_records(folder: str, kind: str, joints: int, splits: Mapping[str, SplitRecords]) -> None:
    """Writes all splits of `joints` joints into a new folder, in the order of their records; shows a progress bar.

    TFDS's own `download_and_prepare` needs TensorFlow beyond 1 GB a split, and the disk space twice.
    """
    os.makedirs(folder)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=folder, module_name=__name__, config_name=kind
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Persons with keypoints: x, y in pixels of the whole image, and COCO's visibility 0, 1 or 2.",
        features=tfds.features.FeaturesDict(_features(kind, joints)),
        disable_shuffling=True,
    )
    writer = tfds.core.SequentialWriter(info, _RECORDS_A_FILE[kind], file_format=tfds.core.FileFormat.ARRAY_RECORD)
    for name, split in splits.items():
        writer.initialize_splits([name])
        examples = itertools.chain.from_iterable(tqdm(split, desc=name, unit="image", dynamic_ncols=True))
        while chunk := list(itertools.islice(examples, _CHUNK)):
            writer.add_examples({name: chunk})
        writer.close_splits([name])


def _features(kind: str, joints: int) -> dict[str, Any]:
    tensor = tfds.features.Tensor
    image = {"image": tfds.features.Image(shape=(None, None, 3)), "image_id": np.int64}
    image |= {"file_name": tfds.features.Text()}
    person = {"id": np.int64, "bbox": tensor(shape=(4,), dtype=np.float32)}
    person |= {"keypoints": tensor(shape=(joints, 3), dtype=np.float32)}
    if kind == "full":
        return image | {"persons": tfds.features.Sequence(person)}
    return image | person | {"origin": tensor(shape=(2,), dtype=np.int32)}
