"""A bucket without a cloud: gs:// paths of epath, in a folder."""

import contextlib
import pathlib
import unittest.mock

import tensorboardX.record_writer
from etils import epath

from dpose_jax.workdir import files


@contextlib.contextmanager
def over(folder, **replaced):
    """gs://NAME/PATH is folder/NAME/PATH inside; `replaced` are functions of epath's backend to use instead."""

    def local(path):
        place = pathlib.Path(str(path).replace("gs://", f"{folder}/"))
        place.parent.mkdir(parents=True, exist_ok=True)
        return str(place)

    def moved(original, path, *arguments, **options):
        return original(local(path), *arguments, **options)

    names = ("open", "exists", "isdir", "listdir", "makedirs")
    writers = tensorboardX.record_writer.REGISTERED_FACTORIES
    reachable = unittest.mock.patch.object(files, "check_google_storage", lambda: None)
    with reachable, epath.testing.mock_epath(**(dict.fromkeys(names, moved) | replaced)):
        google, writers["gs"] = writers["gs"], _Board(local)
        try:
            yield
        finally:
            writers["gs"] = google


class _Board:
    """TensorBoard files of a bucket."""

    def __init__(self, local):
        self._local = local

    def open(self, path):
        return open(self._local(path), "wb")

    def directory_check(self, path):
        pass
