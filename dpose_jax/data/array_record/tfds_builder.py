"""A TFDS builder for COCO-format keypoints, which TFDS itself lacks; it needs no TensorFlow.

Two kinds, as TFDS configs: `full`, one record an image with its original bytes, and `crops`, one record a person with
a JPEG of the part of the image that the recipe's augmentation can reach (`margins.Margin`). A record says all about
its persons, for any reader of TFDS. `python -m dpose_jax.data.build` writes them, `record_source.py` reads them.
"""

import itertools
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dpose_jax.data.array_record.reader import NAME, VERSION
from dpose_jax.data.array_record.writer import SplitRecords
from dpose_jax.pose.joint_sets import JointSet

_CHUNK = 128  # records handed to the writer at once: it rewrites its metadata at every call


class CocoKeypoints(tfds.core.GeneratorBasedBuilder):
    """COCO-format keypoints; records keep the source's order.

    They are written by `write`. TFDS's own `download_and_prepare` needs more to be installed, TensorFlow too beyond
    1 GB a split, and the disk space twice.
    """

    name = NAME
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="full", description="One record an image, with its original bytes."),
        tfds.core.BuilderConfig(name="crops", description="One record a person, with the image around it as a JPEG."),
    ]

    def __init__(self, *, splits: dict[str, SplitRecords], joint_set: JointSet, **options):
        """Args: the records by split, of the kind that `config` names; of which joints; see TFDS's DatasetBuilder."""
        self._splits, self._joint_set = splits, joint_set
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        joints = self._joint_set.num_joints
        person = {
            "id": np.int64,
            "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "keypoints": tfds.features.Tensor(shape=(joints, 3), dtype=np.float32),
        }
        features: dict[str, Any] = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": np.int64,
            "file_name": tfds.features.Text(),
        }
        if self.builder_config.name == "crops":
            features |= person | {"origin": tfds.features.Tensor(shape=(2,), dtype=np.int32)}
        else:
            features |= {"persons": tfds.features.Sequence(person)}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Persons with keypoints: x, y in pixels of the whole image, and COCO's visibility 0, 1 or 2.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(split) for name, split in self._splits.items()}

    def _generate_examples(self, split: SplitRecords):
        yield from enumerate(itertools.chain.from_iterable(split))

    def write(self, records_a_file: int, progress) -> None:
        """Writes all splits into the builder's folder, in order and as they come.

        Args:
          records_a_file: a file is closed after this many.
          progress: (split name, SplitRecords) -> iterable over it, such as a progress bar.
        """
        os.makedirs(self.data_dir)
        writer = tfds.core.SequentialWriter(self.info, records_a_file, file_format=self.info.file_format)
        for name, split in self._splits.items():
            writer.initialize_splits([name])
            chunk: list[dict] = []
            for examples in progress(name, split):
                chunk += examples
                if len(chunk) >= _CHUNK:
                    writer.add_examples({name: chunk})
                    chunk = []
            writer.add_examples({name: chunk})
            writer.close_splits([name])
