"""Rows of the table of speeds for whole networks and programs: HRNet-W32, the input, the start, the memory."""

import contextlib
import functools
import os
import pathlib
import re
import sys
import tempfile
import time
from subprocess import PIPE, STDOUT, Popen, TimeoutExpired

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peers
from benchmarks.micro import SIZE, compare, entries
from dpose_jax.data import build, crop, datasets, loader
from dpose_jax.models import diffusion_pose, hrnet, initialise
from dpose_jax.recipe import Recipe

IMAGES, PERSONS = 4, 64  # in a batch of the network; in a call of the input
ROOT = pathlib.Path(__file__).parents[1]


def network(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """HRNet-W32 at 256 x 192: inference, and forward with backward, batch 4, float32."""
    variables = initialise.initial_variables(diffusion_pose.build_model(recipe.override({"model.backbone": "w32"})), 0)
    ours = jax.device_put({kind: tree["hrnet"] for kind, tree in variables.items()})
    images = np.random.default_rng(0).normal(size=(IMAGES, *SIZE, 3)).astype(np.float32)
    net, rows = hrnet.HRNet(hrnet.HRNetSpec(32)), []

    def backward(variables, images):
        def loss(params):
            features, moved = net.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])
            return jnp.mean(features**2), moved

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    for work, function, train in (("W32 inference", net.apply, False), ("W32 forward + backward", backward, True)):
        theirs = {"torch, eager": peers.torch_hrnet(images, train)} if "torch" in wanted else {}
        rows += compare(work, "ms an image", function, (ours, images), theirs, IMAGES)
    return rows


def inputs(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """Augmented crops of persons from a folder and from both kinds of records, on one core; and their pixels alone."""
    cv2.setNumThreads(0)
    recipe = recipe.override({"data.root": datasets.data_root(recipe.data)})
    spec, joint_set, contenders = loader.crop_spec(recipe), recipe.joints, {}

    def example(source, rng, index):
        view = crop.draw_view(rng, source[index], spec, recipe.augment, joint_set)
        return loader.make_example(source.read_image(index), source[index], view, spec, joint_set)

    def next_persons(make, count, rng):  # in this thread, in random order
        for index in rng.integers(count, size=PERSONS).tolist():
            make(index)

    with tempfile.TemporaryDirectory() as out:
        for kind in ("folder", "full", "crops"):
            if kind != "folder":
                build.build(recipe, out, kind)
            stored = {} if kind == "folder" else {"data.root": out, "data.source": kind}
            source = datasets.make_source(recipe.override(stored), "train", training=True)
            makers = {f"ours, {kind}": functools.partial(example, source, np.random.default_rng(1))}
            makers[f"ours, {kind}, pixels alone"] = source.read_image
            if kind == "folder" and "hrnet" in wanted:
                persons = [source[index] for index in range(len(source))]
                for name, targets in (("hrnet", False), ("hrnet, targets too", True)):
                    makers[name] = peers.hrnet_loader(wanted["hrnet"], persons, targets)
            for name, make in makers.items():
                contenders[name] = functools.partial(next_persons, make, len(source), np.random.default_rng(0))
        return entries("input", "persons/s", contenders, PERSONS)


def start(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """From the command to the end of a dry run of four steps of W32, batch 4, on synthetic people; cold, then warm."""
    given = {"data.source": "synthetic", "data.synthetic.train_images": 64}
    given, rows = given | {"train.batch_size": 4, "model.pretrained": "none"}, []
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "warm"):
            seconds, _ = run_training("configs/coco_w32_256x192.py", given, cache, "--dry_run")
            rows.append({"work": f"start of W32, {state}", "unit": "s", "who": "ours", "value": seconds})
    return rows


def memory(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """Peak memory of the main process of the demo's training, which 20 steps reach."""
    with tempfile.TemporaryDirectory() as cache:
        _, peak = run_training("configs/synthetic.py", {"train.steps": 20, "optim.warmup_steps": 1}, cache)
    return [{"work": "peak memory of the demo", "unit": "GB", "who": "ours", "value": peak / 1e9}]


def run_training(config: str, overrides: dict, cache: str, *options: str) -> tuple[float, int]:
    """Runs train.py of the clone; returns its seconds, and the peak memory of its main process in bytes."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}", *options]
        command += [f"--config.{name}={value}" for name, value in overrides.items()]
        began, peak, printed = time.perf_counter(), 0, None
        process = Popen(command, cwd=ROOT, env=environment, text=True, stdout=PIPE, stderr=STDOUT)
        while printed is None:
            peak = max(peak, peak_memory(process.pid))
            with contextlib.suppress(TimeoutExpired):
                printed, _ = process.communicate(timeout=0.1)
        seconds = time.perf_counter() - began
    if process.returncode:
        raise ValueError(f"{' '.join(command)}: {printed[-2000:]}")
    return seconds, peak


def peak_memory(pid: int) -> int:
    """Peak memory of a running process on Linux, bytes; 0 elsewhere and when it has just ended."""
    # The peak that `wait` reports would start with the memory of the parent process.
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
        return 1024 * int(found[1]) if found else 0
    return 0
