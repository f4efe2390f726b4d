"""Rows of the table of speeds that are of whole networks and programs: HRNet-W32, the input, the start, the memory."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peers, report
from benchmarks.micro import SIZE, Contenders, entries
from dpose_jax.data import crop, loader
from dpose_jax.data.build import build
from dpose_jax.data.datasets import data_root, make_source
from dpose_jax.data.sample import Source
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.hrnet import HRNet, HRNetSpec
from dpose_jax.models.initialise import initial_variables
from dpose_jax.pose.joint_sets import get_joint_set

IMAGES = 4  # in a batch of the network
PERSONS = 64  # in a call of the input
ROOT = pathlib.Path(__file__).parents[2]


def network(wanted: peers.Peers, config) -> list[dict]:
    """HRNet-W32 at 256 x 192: inference, and forward with backward, batch 4, float32."""
    variables = initial_variables(build_model(config.copy_and_resolve_references()), 0)
    mine = jax.device_put({kind: tree["hrnet"] for kind, tree in variables.items()})
    images = np.random.default_rng(0).normal(size=(IMAGES, *SIZE, 3)).astype(np.float32)
    net, rows = HRNet(HRNetSpec(32)), []

    def forward(variables, images):
        return net.apply(variables, images, False)

    def backward(variables, images):
        def loss(params):
            features, moved = net.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])
            return jnp.mean(features**2), moved

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    for work, function, train in (("W32 inference", forward, False), ("W32 forward + backward", backward, True)):
        program, seconds = report.compiled(function, mine, images)
        contenders: Contenders = {"ours": lambda program=program: program(mine, images)}
        if "torch" in wanted:
            contenders["torch, eager"] = peers.torch_hrnet(images, train)
        rows += entries(work, "ms an image", contenders, IMAGES, seconds)
    return rows


def inputs(wanted: peers.Peers, config) -> list[dict]:
    """Augmented crops of persons from a folder and from both kinds of records, on one core; and their pixels alone."""
    cv2.setNumThreads(0)
    contenders: Contenders = {}
    with tempfile.TemporaryDirectory() as out:
        for kind in ("folder", "full", "crops"):
            c = config.copy_and_resolve_references()
            with c.unlocked():
                c.data.root = data_root(c)
                if kind != "folder":
                    build(c, out, kind)
                    c.data.root, c.data.source = out, kind
            source = make_source(c, "train", training=True)
            contenders[f"ours, {kind}"] = _each_person(source, _example_maker(c, source))
            contenders[f"ours, {kind}, pixels alone"] = _each_person(source, source.read_image)
            if kind == "folder" and "hrnet" in wanted:
                persons = [source[index] for index in range(len(source))]
                for name, whole in (("hrnet", False), ("hrnet, targets too", True)):
                    contenders[name] = _each_person(source, peers.hrnet_loader(wanted["hrnet"], persons, whole))
        return entries("input", "persons/s", contenders, PERSONS)


def _each_person(source: Source, work: Callable[[int], object]) -> Callable[[], None]:
    """A call that does the work for the next PERSONS of a random order, in this thread."""
    rng = np.random.default_rng(0)

    def call():
        for index in rng.integers(len(source), size=PERSONS):
            work(int(index))

    return call


def _example_maker(config, source: Source) -> Callable[[int], object]:
    """Index -> its training example."""
    spec, rng = loader.crop_spec(config), np.random.default_rng(1)
    augment, joint_set = config.augment, get_joint_set(config.joint_set)

    def make(index):
        person = source[index]
        view = crop.draw_view(rng, person, spec, augment, joint_set)
        return loader.make_example(source.read_image(index), person, view, spec, joint_set)

    return make


def start(wanted: peers.Peers, config) -> list[dict]:
    """From the command to the end of a dry run of four steps of W32, batch 4, on synthetic people; cold, then warm."""
    overrides = (
        "data.source=synthetic",
        "data.synthetic.train_images=64",
        "train.batch_size=4",
        "model.pretrained=none",
    )
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "warm"):
            seconds, _ = run_program("configs/coco_w32_256x192.py", overrides, cache, "--dry_run")
            rows.append({"work": f"start of W32, {state}", "unit": "s", "who": "ours", "value": seconds})
    return rows


def memory(wanted: peers.Peers, config) -> list[dict]:
    """The main process of the demo's training, at its peak; by 20 steps it is reached."""
    with tempfile.TemporaryDirectory() as cache:
        overrides = ("train.steps=20", "optim.warmup_steps=1")
        _, peak = run_program("configs/synthetic.py", overrides, cache)
    return [{"work": "peak memory of the demo", "unit": "GB", "who": "ours", "value": peak / 1e9}]


def run_program(config: str, overrides: tuple[str, ...], cache: str, *options: str) -> tuple[float, int]:
    """Runs train.py of the clone: seconds, and the bytes of its main process at their peak."""
    with tempfile.TemporaryDirectory() as workdir:
        given = [f"--config.{text}" for text in overrides]
        command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}", *given, *options]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryFile("w+") as said:
            began, peak = time.perf_counter(), 0
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)
            while process.poll() is None:
                peak = max(peak, _peak_memory(process.pid))
                time.sleep(0.1)
            seconds = time.perf_counter() - began
            said.seek(0)
            if process.returncode:
                raise ValueError(f"{' '.join(command)}: {said.read()[-2000:]}")
    return seconds, peak


def _peak_memory(pid: int) -> int:
    """Bytes of a running process at its peak, of Linux; 0 elsewhere and when it has just ended.

    What `wait` reports begins with the memory of the process that started it.
    """
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
