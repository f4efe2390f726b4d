"""Shared memory, by which worker processes hand over images: containers often have little."""

import os
import shutil
import sys

from absl import logging

FOLDER = "/dev/shm"
WAYS_OUT = "`docker run --shm-size=1g` gives more, data.workers=0 needs none"
# Grain's queues and locks of a worker are some 25 semaphores, each a page; arrays that are no images are small.
_LOCKS = 1 << 17
_SHARED = 1 << 16  # bytes from which an array is shared: images are, small arrays are not


def smallest_shared(workers: int, image_bytes: int) -> int:
    """The bytes from which an array should leave a worker by shared memory; smaller ones go through a pipe.

    `image_bytes` are those of the images of an element that the workers make. Where shared memory has no room for all
    that they hold, no array is shared, and a warning says so once. Raises OSError, with the way out, where even the
    locks of `workers` processes have no room.
    """
    if sys.platform != "linux":  # elsewhere it is no folder
        return _SHARED
    if not os.access(FOLDER, os.W_OK):
        raise OSError(f"{FOLDER}: is missing or cannot be written, which data.workers={workers} needs; {WAYS_OUT}")
    free = shutil.disk_usage(FOLDER).free
    locks = _LOCKS * (workers + 1)
    if free < locks:
        asked = f"data.workers={workers} needs {locks >> 10} KiB"
        raise OSError(f"{FOLDER}: {free >> 10} KiB of shared memory are free, {asked}; {WAYS_OUT}")
    # Of each worker: one that is being made, one in its queue, one on its way.
    needed = locks + (3 * workers + 1) * image_bytes
    if free >= needed:
        return _SHARED
    text = "%s: %d MiB of shared memory are free, data.workers=%d may need %d: batches go through pipes, slower; %s"
    logging.log_first_n(logging.WARNING, text, 1, FOLDER, free >> 20, workers, -(-needed >> 20), WAYS_OUT)
    return sys.maxsize
