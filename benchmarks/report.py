"""What all benchmarks share: timing with compilation apart, the machine they ran on, and the report they write."""

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax
import numpy as np

from dpose_jax import __version__
from dpose_jax.workdir.files import write_bytes, write_json

Name = TypeVar("Name", bound=Hashable)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "opencv-python-headless", "pycocotools")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, the quartiles around it, and how many calls they are of."""

    median: float
    low: float
    high: float
    calls: int


def measure(calls: dict[Name, Callable[[], Any]], *, seconds: float = 3.0, least: int = 5) -> dict[Name, Timing]:
    """Times functions in turn, A B C A B C, so that a change of the machine's load meets them all alike.

    Each is called once unmeasured, and what it returns is waited for. Compile first, by `compiled`.

    Args:
      calls: a function without arguments for each name.
      seconds: to spend on each, about, on average; least: calls of each, whatever they take.
    """
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    began, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - began < seconds * len(calls):
        rounds += 1
        for name, call in calls.items():
            called = time.perf_counter()
            jax.block_until_ready(call())
            taken[name].append(time.perf_counter() - called)
    return {name: timing(values) for name, values in taken.items()}


def timing(values: list[float]) -> Timing:
    """The Timing of measured seconds."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return Timing(float(median), float(low), float(high), len(values))


def compiled(function: Callable, *arguments, **options) -> tuple[Callable, float]:
    """`function` (plain or jitted) compiled for `arguments`, and the seconds that tracing and compiling took.

    Args:
      options: of `jax.jit`, for a plain function.
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function, **options)
    began = time.perf_counter()
    executable = jitted.lower(*arguments).compile()
    return executable, time.perf_counter() - began


def environment() -> dict[str, Any]:
    """Machine, device, versions and load, as JSON values; call it before measuring, for the load is of now."""
    devices = jax.devices()
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {"dpose_jax": __version__} | versions(*PACKAGES),
    }


def versions(*packages: str) -> dict[str, str]:
    """The versions of those of `packages` that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, its columns those of all rows in the order of their first appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def write(out: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Prints the rows as a table, and writes them to `out`, JSON, and the table to `out` with the suffix .md.

    Args:
      rows: flat, one an entry of the table; what the table need not show goes into `facts`.
      facts: written beside `rows` in the JSON, such as `environment=` (always) and `protocol=`.

    Raises:
      OSError, ValueError: if it cannot be written, or a number is not finite.
    """
    text = table(rows)
    print(text)
    write_json(out, {**facts, "rows": rows})
    write_bytes(os.path.splitext(out)[0] + ".md", (text + "\n").encode())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
