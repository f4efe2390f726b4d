"""Timing, the machine's description, and the report: a printed table and a JSON file."""

import contextlib
import importlib.metadata
import io
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dpose_jax import __version__
from dpose_jax.workdir.files import write_bytes, write_json

PACKAGES = ["jax", "jaxlib", "libtpu", "flax", "optax", "grain", "numpy", "opencv-python-headless"]
PACKAGES += ["pycocotools", "faster-coco-eval", "hotcoco"]  # their versions are reported where installed
# Of a GPU, and of the peers: which CUDA and cuDNN they use is in the names and versions of these.
PACKAGES += ["jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "torch", "diffusers"]


class Timing(NamedTuple):
    """Seconds of one call, and the number of calls."""

    median: float
    low: float  # quartiles
    high: float
    calls: int
    cpu: float = 0.0  # median processor time of all threads
    p95: float = 0.0  # the 95th percentile


def measure(calls: dict[Any, Callable[[], Any]], *, seconds: float = 3.0, least: int = 5) -> dict[Any, Timing]:
    """Times each function about `seconds` long, at the `least` so often, after one call; waits for arrays."""
    # In turn, A B C A B C, so that other load on the machine affects all alike.
    taken: dict[Any, list] = {name: [] for name in calls}
    jax.block_until_ready([call() for call in calls.values()])
    began, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - began < seconds * len(calls):
        rounds += 1
        for name, call in calls.items():
            called, spent = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            taken[name].append((time.perf_counter() - called, time.process_time() - spent))
    return {name: timing(*zip(*both, strict=True)) for name, both in taken.items()}


def timing(wall: Sequence[float], cpu: Sequence[float] = (0.0,)) -> Timing:
    """The Timing of measured seconds of wall clock and processor."""
    low, median, high, p95 = np.percentile(wall, (25, 50, 75, 95)).tolist()
    return Timing(median, low, high, len(wall), float(np.median(cpu)), p95)


def compiled(function: Any, *arguments) -> tuple[Any, float]:
    """`function` (plain or jitted) compiled for `arguments`, and the seconds that tracing and compiling took."""
    jitted, began = function if hasattr(function, "lower") else jax.jit(function), time.perf_counter()
    executable = jitted.lower(*arguments).compile()
    return executable, time.perf_counter() - began


def environment() -> dict[str, Any]:
    """Machine, device, versions and load as JSON values. Call it before measuring: the load is the present one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        cpu = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    machine = {"cpu": cpu, "cores": cores, "system": f"{platform.system()} {platform.machine()}"}
    machine |= {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "load": round(os.getloadavg()[0], 2),
    }
    machine |= {"python": platform.python_version(), "xla_flags": os.environ.get("XLA_FLAGS", "")}
    versions = {"dpose_jax": __version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return machine | {"versions": versions}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, a column for each key of any row; nothing without rows."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [[name, *(_cell(row.get(name)) for row in rows)] for name in names]
    widths = [max(map(len, column)) for column in columns]
    padded = [[text.ljust(width) for text in column] for column, width in zip(columns, widths, strict=True)]
    head, *body = ("| " + " | ".join(cells) + " |" for cells in zip(*padded, strict=True))
    return "\n".join([head, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *body])


def write(out: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Prints the rows as a table, and stores them."""
    print(table(rows))
    store(out, rows, **facts)


def store(out: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Writes rows and facts to `out` as JSON, the rows as a table beside it as .md."""
    write_json(out, {**facts, "rows": rows})
    write_bytes(os.path.splitext(out)[0] + ".md", (table(rows) + "\n").encode())


def kept(out: str, parts: Iterable[list[dict[str, Any]]], **facts: Any) -> list[dict[str, Any]]:
    """The rows of all `parts`, stored after each, so that a measurement that is stopped or fails loses no other."""
    rows = list[dict[str, Any]]()
    for part in parts:
        rows += part
        store(out, rows, **facts)
    return rows


def write_figure(path: str, figure) -> None:
    """Writes a matplotlib figure as PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    write_bytes(path, data.getvalue())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
