"""Whether a step fits into the memory of a device, and what to do where it does not."""

import contextlib
import os
import pathlib

import jax

from dpose_jax.recipe import Recipe

CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")  # a container's limit; "max" is none


def device_memory() -> int | None:
    """The bytes of memory of a device that programs may use; None where nothing tells.

    Devices of the CPU share those of the machine, or of the container if that has fewer.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    except (ValueError, OSError):
        return None
    with contextlib.suppress(OSError, ValueError):
        whole = min(whole, int(CGROUP.read_text()) // jax.local_device_count())
    return whole


def ways_to_fit(recipe: Recipe) -> str:
    """The fields that lower the memory of a step, with their values, in one line; see docs/scale.md."""
    train, model = recipe.train, recipe.model
    ways = [f"lower train.batch_size={train.batch_size}", f"raise train.accumulate={train.accumulate}"]
    ways += ["set model.dtype=bfloat16"] if model.dtype == "float32" else []
    ways += ["set model.remat=blocks"] if model.remat == "none" else []
    return f"{', '.join(ways)} (docs/scale.md, Memory)"


def check_fits(needed: int, recipe: Recipe) -> None:
    """Raises ValueError if a step that needs `needed` bytes cannot fit into a device's memory."""
    there = device_memory()
    if there is not None and needed > there:
        raise ValueError(f"a step needs {_gib(needed)} a device, which has {_gib(there)}: {ways_to_fit(recipe)}")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
