"""The rows of `benchmark.py accelerator`: which a report lacks, measured in processes of their own, stored at once."""

import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax

from benchmarks import peers, report
from benchmarks.throughput import COUNTED, FULL, PLAIN, WORKS, flops_an_image, measure, peak, tried
from dpose_jax.recipe import Recipe
from dpose_jax.workdir import files

Key = tuple[str, str, int, str]  # work, dtype, batch, who
# What all rows of a report share.
SAME = {"environment": ("device", "versions", "peer")}
SAME |= {"protocol": ("backbone", "input_size", "stride", "denoiser_channels")}


def measure_lacking(
    recipe: Recipe,
    works: Sequence[str],
    dtypes: Sequence[str],
    sizes: Sequence[int],
    wanted: Iterable[str],
    out: str,
    options: dict,
) -> list[str]:
    """Measures the rows that the report `out` lacks, each work and dtype in a process; a text for each that failed."""
    ended, asked = list[str](), list[Key]()
    for work, dtype in itertools.product(works, dtypes):
        who = ["ours", *(wanted if work in PLAIN else ())]
        keys = [(work, dtype, batch, name) for batch in sizes for name in who]
        asked += keys
        # JAX's pool never shrinks. What PyTorch has no room for beside it, it gets in a second process, alone.
        for alone in (False, True):
            left = lacking(stored_rows(out), keys, again=not alone)
            left = [key for key in left if key[-1] == "torch" or not alone]
            try:
                if left:
                    apart(measure_all, recipe.override({"model.dtype": dtype}), left, out, options)
            except BrokenProcessPool:  # killed, or by a fatal error of XLA or CUDA
                ended.append(f"{work}, {dtype}: its process ended")
    failed = [row for row in stored_rows(out) if _key(row) in asked and row.get("note", FULL) != FULL]
    return [f"{', '.join(map(str, _key(row)))}: {row['note']}" for row in failed] + ended


def prepare_memory(environment: MutableMapping[str, str]) -> None:
    """Lets the GPU's pool of JAX begin empty and grow to 95% of the card, not three quarters; what is set stays."""
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environment:  # the older name: JAX refuses both
        environment.setdefault("XLA_CLIENT_MEM_FRACTION", ".95")
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        environment["JAX_PLATFORMS"] = f"{platforms},cpu"  # which counts FLOPs


def apart(function: Callable, *arguments: Any) -> Any:
    """Calls a function in a process of its own, whose end gives its GPU memory back."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def measure_all(recipe: Recipe, keys: list[Key], out: str, options: dict) -> None:
    """Measures rows of one work and dtype in the order of their batches, and stores each at once.

    A batch that does not fit ends larger ones. Of PyTorch it has a row only where ours has not run before it.
    """
    work, _, _, _ = keys[0]
    facts = {"environment": report.environment(), "protocol": protocol(recipe)}
    if any(who == "torch" for *_, who in keys):
        peers.torch_place()
        facts["environment"] |= {"peer": peers.torch_versions()}
    facts = joined(out, facts)
    flops, beside, full = tried(flops_an_image, recipe, work), False, dict[str, int]()
    for batch in dict.fromkeys(batch for _, _, batch, _ in keys):
        who = [name for *_, size, name in keys if size == batch < full.get(name, batch + 1)]
        if not who:
            continue
        found = measure(recipe, work, batch, who, flops=flops, **options)
        beside |= "ours" in who
        ended = {name for name, row in found.items() if row.get("note") == FULL}
        if ended and beside:
            found.pop("torch", None)
            ended.add("torch")
        full |= {name: min(batch, full.get(name, batch)) for name in ended}
        shared = {"work": work, "dtype": recipe.model.dtype, "batch": batch}
        fresh = [shared | {"who": name} | row for name, row in found.items()]
        if "ours" not in who:
            fresh = [row | {"alone": True} for row in fresh]
        replaced = {_key(row) for row in fresh}
        rows = [row for row in stored_rows(out) if _key(row) not in replaced] + fresh
        report.store(out, sorted(rows, key=lambda row: (list(WORKS).index(row["work"]), *_key(row))), **facts)
        print(report.table(fresh), flush=True)


def protocol(recipe: Recipe) -> dict[str, Any]:
    """What all rows share. The limit of our memory is the device's own, as JAX may use it."""
    found = {"backbone": recipe.model.backbone, "input_size": recipe.input_size, "stride": recipe.stride}
    found |= {"denoiser_channels": recipe.model.decoder_channels, "flip": False, "peaks": peak()}
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    found |= {"memory_limit_mib": limit and limit // 2**20, "flops_counted_with_images": COUNTED}
    return found | {"alone": "not in turn with ours, which is measured in another process or call"}


def lacking(rows: Iterable[dict], keys: Iterable[Key], *, again: bool = False) -> list[Key]:
    """Those of `keys` without a row, in their order; with `again` also those whose program failed.

    A batch that does not fit speaks for the larger ones.
    """
    found = {_key(row): row.get("note") for row in rows}
    full = {(*key[:2], key[-1]): key[2] for key, note in sorted(found.items(), reverse=True) if note == FULL}

    def known(key: Key) -> bool:
        held = key in found and not (again and found[key] not in (None, FULL))
        return held or full.get((*key[:2], key[-1]), key[2]) < key[2]

    return [key for key in keys if not known(key)]


def joined(out: str, facts: dict[str, Any]) -> dict[str, Any]:
    """`facts` and what the report `out` has beyond them. ValueError if its rows are of something else, of SAME."""
    if not files.exists(out):
        return facts
    held, now = files.read_json(out), json.loads(json.dumps(facts))
    for kind, names in SAME.items():
        for name in set(names) & set(held[kind]) & set(now[kind]):
            if held[kind][name] != now[kind][name]:
                differ = f"its rows are of {name} {held[kind][name]!r}, this is {now[kind][name]!r}"
                raise ValueError(f"--out={out}: {differ}; name another file")
    return {kind: held[kind] | now[kind] for kind in now}


def stored_rows(out: str) -> list[dict[str, Any]]:
    """The rows of the report `out`; none if there is none."""
    return files.read_json(out)["rows"] if files.exists(out) else []


def _key(row: dict) -> Key:
    return row["work"], row["dtype"], row["batch"], row["who"]
