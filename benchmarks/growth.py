"""How cost grows: throughput over batch size, heatmap stride, number of joints, sampling steps and data workers."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks import report
from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import train_iterator
from dpose_jax.diffusion.sampler import SamplerSettings
from dpose_jax.models.initialise import initial_variables
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.pose.codec import Codec
from dpose_jax.recipe import Recipe
from dpose_jax.workdir import recipe_flags

CONFIG = recipe_flags.define("A file of configs/.", "configs/synthetic.py")
BATCHES = flags.DEFINE_list("batches", ["1", "2", "4", "8", "16", "32", "64"], "Persons in a batch.")
STRIDES = flags.DEFINE_list("strides", ["8", "4", "2", "1"], "Heatmap strides s.")
JOINTS = flags.DEFINE_list("joints", ["5", "17", "68", "133"], "Joints of a person, encoded and decoded.")
STEPS = flags.DEFINE_list("steps", ["0", "1", "2", "4", "8"], "Sampling steps; 0 is the coarse branch.")
WORKERS = flags.DEFINE_list("workers", ["0", "1", "2", "4"], "Processes that make training examples.")
DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Dtypes of compute: float32, bfloat16.")
SECONDS = flags.DEFINE_float("seconds", 2.0, "To spend on timing each point.")
OUT = flags.DEFINE_string("out", None, "The folder for growth.json, growth.md and growth.png.", required=True)

BATCH = 16  # persons, where another quantity varies
NETWORK = "batch", "stride", "steps"  # the series with a network
TAKEN = 16  # batches in a call of the loader: more than it holds ready, two for each worker


def main() -> None:
    """Measures, prints the table, writes the report and draws the plots."""
    recipe, environment = Recipe.from_config(CONFIG.value), report.environment()
    protocol = {"backbone": recipe.model.backbone, "input_size": recipe.input_size, "batch": BATCH, "flip": False}
    facts, out = {"environment": environment, "protocol": protocol}, os.path.join(OUT.value, "growth.json")
    rows = report.kept(out, points(recipe), **facts)
    report.write(out, rows, **facts)
    write_plot(os.path.join(OUT.value, "growth.png"), rows)


def points(recipe: Recipe) -> Iterator[list[dict]]:
    """The row of each point of each series, as the flags have them."""
    series = {
        "batch": (BATCHES.value, lambda size, of, stack: prediction(of, size, of.stride, 1)),
        "stride": (STRIDES.value, lambda stride, of, stack: prediction(of, BATCH, stride, 1)),
        "steps": (STEPS.value, lambda steps, of, stack: prediction(of, BATCH, of.stride, steps)),
        "joints": (JOINTS.value, lambda number, of, stack: encode_decode(number)),
        "workers": (WORKERS.value, lambda workers, of, stack: loader(of, workers, stack)),
    }
    device = jax.devices()[0].device_kind
    for name, (values, make) in series.items():
        dtypes = DTYPES.value if name in NETWORK else DTYPES.value[:1]
        for dtype, value in itertools.product(dtypes, map(int, values)):
            with contextlib.ExitStack() as stack:  # stops the point's worker processes before the next point
                call, persons = make(value, recipe.override({"model.dtype": dtype}), stack)
                t = report.measure({name: call}, seconds=SECONDS.value)[name]
            rates = {"value": persons / t.median, "low": persons / t.high, "high": persons / t.low}
            row = {"over": name, "at": value} | rates  # persons a second, and quartiles
            yield [row | ({"dtype": dtype, "device": device} if name in NETWORK else {})]


def prediction(recipe: Recipe, batch: int, stride: int, steps: int) -> tuple[Callable, int]:
    """A call that predicts a batch of crops with K `direct` steps and random weights, and its persons."""
    form = {"stride": stride} | ({"model.upsampling": "bilinear"} if stride > 4 else {})  # without sub-pixels there
    sampler = PoseSampler.of(recipe.override({**form, "eval.flip": False}))
    sampler = dataclasses.replace(sampler, settings=(SamplerSettings(steps=steps),) if steps else ())
    crops = np.random.default_rng(0).integers(256, size=(batch, *recipe.input_size, 3), dtype=np.uint8)
    inputs = jax.device_put((initial_variables(sampler.model, 0), crops, np.arange(batch, dtype=np.int32)))
    program, _ = report.compiled(sampler.poses, *inputs)
    return lambda: program(*inputs), batch


def encode_decode(joints: int) -> tuple[Callable, int]:
    """A call that encodes and decodes persons of so many joints, and its persons."""
    codec, rng = Codec((256, 192)), np.random.default_rng(0)
    keypoints = jnp.asarray(rng.random((BATCH, joints, 2)) * [191, 255], jnp.float32)
    program, _ = report.compiled(lambda k: codec.decode(codec.encode(k, jnp.ones(k.shape[:2]))), keypoints)
    return lambda: program(keypoints), BATCH


def loader(recipe: Recipe, workers: int, stack: contextlib.ExitStack) -> tuple[Callable, int]:
    """A call that reads the next training batches, and their persons; `stack` stops the workers."""
    recipe = recipe.override({"data.workers": workers})
    batches = train_iterator(recipe, make_source(recipe, "train", training=True))
    stack.callback(batches.close)
    return lambda: [next(batches)["image"].sum() for _ in range(TAKEN)], TAKEN * recipe.train.batch_size


def write_plot(path: str, rows: list[dict]) -> None:
    """Draws a panel for each quantity: persons a second over it, both logarithmic, the quartiles as a band."""
    names = list(dict.fromkeys(row["over"] for row in rows))
    figure = Figure(figsize=(3.2 * len(names), 3.2), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        panel = [row for row in rows if row["over"] == name]
        for dtype in dict.fromkeys(row.get("dtype") for row in panel):
            line = [row for row in panel if row.get("dtype") == dtype]
            at, value, low, high = ([row[key] for row in line] for key in ("at", "value", "low", "high"))
            axes.plot(at, value, "o-", markersize=4, label=dtype)
            axes.fill_between(at, low, high, alpha=0.2)
        if len(DTYPES.value) > 1 and name in NETWORK:
            axes.legend()
        axes.set(xlabel=name, ylabel="persons a second", yscale="log")
        axes.set_xscale("symlog", base=2, linthresh=1)  # linear below 1, for 0
        axes.set_xticks(at, list(map(str, at)))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    report.write_figure(path, figure)
