"""Writes keypoints as a TFDS data set of ArrayRecord files, without TensorFlow.

The TFDS config `full` has one record an image, with the original bytes; `crops` one a person, with a JPEG of the part
that augmentation can reach. A record also holds annotations, for other readers: `reader.py` has the JSON beside it.
"""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import grain
import numpy as np
from tqdm import tqdm

from dpose_jax.data.array_record.crop_margin import Margin
from dpose_jax.data.array_record.reader import NAME, VERSION
from dpose_jax.data.coco_dataset import FolderSource, ListedImage
from dpose_jax.data.crop import BORDER, widened_view
from dpose_jax.data.image_headers import IMAGE_NOTES, read_header
from dpose_jax.data.jpeg_parts import with_tiles
from dpose_jax.data.loader import read_ahead
from dpose_jax.data.sample import Person
from dpose_jax.recipe import Data

KINDS = ("full", "crops")
_CHUNK = 128  # records handed to TFDS at once: it rewrites its metadata at every call
_RECORDS_A_FILE = {"full": 1500, "crops": 5000}  # about 250 MB a file at COCO's sizes
Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cut:
    """What `crops` store of an image: the part within `margin` of a person, as a JPEG of `quality` 1 to 100.

    A part is shrunk, by means over pixels, where the plain crop within it has more rows than `max_height`, if any.
    """

    margin: Margin
    quality: int
    max_height: int | None = None

    def pixels(self, image: np.ndarray, person: Person) -> tuple[np.ndarray, tuple[int, int], tuple[float, float]]:
        """Of an image (H, W, 3) and a person: the part as stored, its `origin` and `scale` (`sample.Person`)."""
        rows = widened_view(person.bbox, self.margin.aspect, self.margin.padding).size[1]
        factor = min(1.0, (self.max_height or rows) / rows)
        left, top, right, bottom = self.margin.window(person, image.shape[:2], math.ceil(BORDER / factor))
        width, height = (max(1, round(side * factor)) for side in (right - left, bottom - top))
        part = image[top:bottom, left:right]
        shrunk = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA) if factor < 1 else part
        return shrunk, (left, top), (width / (right - left), height / (bottom - top))


def _image_records(source: FolderSource, images: list[ListedImage], cut: Cut | None, tiles: bool, item: int) -> Example:
    """The records of an image, or why there are none."""
    name, image_id, size, persons = images[item]
    found: Example = {"problem": "", "notes": (), "examples": []}
    try:
        data = source.folder.read(name)
        if header := read_header(data):
            found["notes"] = header.notes
        image = source.folder.decode(data, size)
    except (OSError, ValueError) as error:
        return found | {"problem": str(error)}
    metadata = {"file_name": name, "image_id": image_id}
    people = [source[index] for index in persons]
    described = [{"id": p.annotation_id, "bbox": p.bbox, "keypoints": p.keypoints} for p in people]
    if cut is None:
        return found | {"examples": [metadata | {"image": with_tiles(data) if tiles else data, "persons": described}]}
    for person, description in zip(people, described, strict=True):
        pixels, origin, scale = cut.pixels(image, person)
        cut_out = {"image": encode_jpeg(pixels, cut.quality), "origin": np.array(origin, np.int32)}
        cut_out["scale"] = np.array(scale, np.float64)
        found["examples"].append(metadata | description | cut_out)
    return found


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """(h, w, 3) uint8 RGB as a JPEG of `quality` 1 to 100, chroma at half resolution."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return data.tobytes()


class SplitRecords:
    """The records of a split, once: iterating yields them and fills `index` and `counts`.

    `index` has `images`: file names; `unreadable`: {file name: why}; for crops `persons`: annotation ids, `origins`:
    x, y of each cut in its image, and `scales`: its pixels per image pixel, across and down. Images, or persons of
    crops, are in the order of the records. `counts` has by rule the source's report, IMAGE_NOTES and
    `image_unreadable`.
    """

    def __init__(self, source: FolderSource, data: Data, cut: Cut | None, *, with_empty: bool, tiles: bool = False):
        """`cut` is None for `full`; `with_empty` has also images without persons, in which detected boxes may lie.

        Of `full`, `tiles` rewrites JPEGs by `with_tiles`.
        """
        self._source, self._data, self._cut, self._tiles = source, data, cut, tiles
        self._images = source.images(with_empty=with_empty)
        self.counts = source.report() | dict.fromkeys(("image_unreadable", *IMAGE_NOTES), 0)
        self.index: dict[str, Any] = {"images": [], "unreadable": {}}
        self.index |= {"persons": [], "origins": [], "scales": []} if cut else {}

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[list[Example]]:
        """Yields the records of an image, in the source's order; ValueError if `max_bad_share` is exceeded."""
        records = functools.partial(_image_records, self._source, self._images, self._cut, self._tiles)
        dataset = grain.MapDataset.range(len(self)).map(records)
        ahead = read_ahead(dataset, self._data.workers, elements=64)
        for (name, *_), found in zip(self._images, ahead, strict=True):
            for note in found["notes"]:
                self.counts[note] += 1
            if found["problem"]:
                self.counts["image_unreadable"] += 1
                self.index["unreadable"][name] = found["problem"]
                count, share = self.counts["image_unreadable"], self._data.max_bad_share
                if count > share * len(self):
                    raise ValueError(
                        f"{count} of {len(self)} images are unreadable, more than data.max_bad_share={share}; the "
                        f"last: {self._source.folder.place(name)}: {found['problem']}"
                    )
                continue
            self.index["images"].append(name)
            if self._cut:
                self.index["persons"] += [example["id"] for example in found["examples"]]
                for field in ("origin", "scale"):
                    self.index[f"{field}s"] += [example[field].tolist() for example in found["examples"]]
            yield found["examples"]


def write_records(folder: str, kind: str, joints: int, splits: Mapping[str, SplitRecords]) -> None:
    """Writes all splits of `joints` joints into a new folder, in the order of their records; shows a progress bar.

    TFDS's own `download_and_prepare` needs TensorFlow beyond 1 GB a split, and the disk space twice.
    """
    import tensorflow_datasets as tfds  # optional

    tensor = tfds.features.Tensor
    fields: dict[str, Any] = {"image": tfds.features.Image(shape=(None, None, 3)), "image_id": np.int64}
    fields |= {"file_name": tfds.features.Text()}
    person = {"id": np.int64, "bbox": tensor(shape=(4,), dtype=np.float32)}
    person |= {"keypoints": tensor(shape=(joints, 3), dtype=np.float32)}
    if kind == "full":
        fields |= {"persons": tfds.features.Sequence(person)}
    else:
        fields |= person | {"origin": tensor(shape=(2,), dtype=np.int32)}
        fields |= {"scale": tensor(shape=(2,), dtype=np.float64)}
    os.makedirs(folder)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=folder, module_name=__name__, config_name=kind
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Persons with keypoints: x, y in pixels of the whole image, and COCO's visibility 0, 1 or 2.",
        features=tfds.features.FeaturesDict(fields),
        disable_shuffling=True,
    )
    writer = tfds.core.SequentialWriter(info, _RECORDS_A_FILE[kind], file_format=tfds.core.FileFormat.ARRAY_RECORD)
    for name, split in splits.items():
        writer.initialize_splits([name])
        examples = itertools.chain.from_iterable(tqdm(split, desc=name, unit="image", dynamic_ncols=True))
        while chunk := list(itertools.islice(examples, _CHUNK)):
            writer.add_examples({name: chunk})
        writer.close_splits([name])
