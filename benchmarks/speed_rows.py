"""Rows of the table of speeds: heatmaps, decoding, a sampling step, HRNet-W32, the input, the start, the memory."""

import contextlib
import functools
import itertools
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, MutableMapping, Sequence
from subprocess import PIPE, STDOUT, Popen, TimeoutExpired
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peers, report
from dpose_jax.data import build, crop, datasets, loader
from dpose_jax.data.jpeg_parts import JPEGTRAN
from dpose_jax.data.sample import read_part
from dpose_jax.diffusion.process import Schedule
from dpose_jax.diffusion.sampler import SamplerSettings, sample
from dpose_jax.models import diffusion_pose, hrnet, initialise, layers
from dpose_jax.pose import masks
from dpose_jax.pose.codec import Codec
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.recipe import Recipe

BATCH, SIZE = 64, (256, 192)
STEPS = 9  # of the sampler: a step is an eighth of what nine take beyond one
IMAGES, PERSONS = 4, 64  # in a batch of the network; in a call of the input
ROOT = pathlib.Path(__file__).parents[1]
Contenders = dict[str, Callable[[], object]]


def check_peer(names: Sequence[str], wanted: peers.Peers) -> None:
    """Raises ValueError for rows that would compare a GPU or TPU with PyTorch on the CPU."""
    apart = [name for name in names if name in ("network", "convolution")]
    if "torch" in wanted and apart and (ours := jax.default_backend()) != "cpu":
        place = f"JAX runs on {ours!r}, the peer torch on the CPU"
        raise ValueError(f"--rows={','.join(apart)}: {place}; benchmark.py accelerator compares both on the device")


def leave_memory(environment: MutableMapping[str, str]) -> None:
    """Leaves memory of a GPU to the programs of `start`, `predict` and `memory`; JAX would take three quarters."""
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def entries(work: str, unit: str, contenders: Contenders, amount: float, compile_seconds: float | None = None) -> list:
    """A row for each contender, timed in turn: the median as `value`, the quartiles as `low` and `high`.

    `by_cpu_time` is the same of the processor time of all threads, which other load on the machine changes less.
    """
    rows = [timed(work, unit, who, t, amount) for who, t in report.measure(contenders).items()]
    if compile_seconds is not None:
        rows[0]["compile_seconds"] = compile_seconds
    return rows


def timed(work: str, unit: str, who: str, t: report.Timing, amount: float) -> dict:
    """One row of `entries`."""
    seconds = np.array([*t[:3], max(t.cpu, 1e-9)])  # of a call, with `amount` persons, images or steps
    value, *ends, cpu = (amount / seconds if unit.endswith("/s") else 1e3 * seconds / amount).tolist()
    row = {"work": work, "unit": unit, "who": who, "value": value, "low": min(ends), "high": max(ends)}
    return row | {"by_cpu_time": cpu}


def compare(work: str, unit: str, function: Callable, inputs: tuple, theirs: Contenders, amount: float) -> list:
    """Rows of `entries`: our function, compiled for its inputs, beside the peers' calls."""
    program, seconds = report.compiled(function, *inputs)
    return entries(work, unit, {"ours": functools.partial(program, *inputs)} | theirs, amount, seconds)


def draw_people(codec: Codec, batch: int = BATCH):
    """(B, 17, 2) float32 joints anywhere in the crop, in crop pixels, and their (B, 17) visibilities, all 1."""
    keypoints = np.random.default_rng(0).random((batch, COCO.num_joints, 2)) * (np.array(codec.input_size[::-1]) - 1)
    return keypoints.astype(np.float32), np.ones((batch, COCO.num_joints), np.float32)


def draw_heatmaps(codec: Codec, batch: int = BATCH) -> jax.Array:
    """(B, H, W, 17) float32 heatmaps of random people, with a little noise like a network's."""
    clean = np.asarray(codec.encode(*draw_people(codec, batch)))
    return jnp.asarray(clean + np.random.default_rng(1).normal(0, 0.01, clean.shape).astype(np.float32))


def masks_of(keypoints: jax.Array, visible: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """M^kps and M^ske of COCO's joints in heatmap pixels, with the recipes' widths."""
    joints = masks.joint_mask(keypoints, visible, size=size, radius=6.0)
    return joints, masks.limb_mask(keypoints, visible, limbs=COCO.limbs, size=size, half_width=3.0)


def heatmaps(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """Target heatmaps of a batch of persons, without and with both masks."""
    codec, people = Codec(SIZE), draw_people(Codec(SIZE))

    def with_masks(keypoints, visible):
        return codec.encode(keypoints, visible), masks_of(codec.to_heatmap(keypoints), visible, codec.size)

    theirs = {"hrnet, 1 core": peers.hrnet_targets(wanted["hrnet"], *people)} if "hrnet" in wanted else {}
    rows = compare("heatmaps", "sets/s", codec.encode, people, theirs, BATCH)
    return rows + compare("heatmaps and both masks", "sets/s", with_masks, people, {}, BATCH)


def decode(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """Heatmaps to joints."""
    maps = draw_heatmaps(Codec(SIZE))
    theirs = {"hrnet, 1 core": peers.hrnet_decode(wanted["hrnet"], np.asarray(maps))} if "hrnet" in wanted else {}
    rows = compare("decode, quarter", "sets/s", Codec(SIZE, refine="quarter").decode, (maps,), theirs, BATCH)
    return rows + compare("decode, dark", "sets/s", Codec(SIZE, refine="dark").decode, (maps,), {}, BATCH)


def sampling(settings: SamplerSettings, codec: Codec) -> Callable[[jax.Array], jax.Array]:
    """The sampler, heatmaps -> heatmaps, around a network that costs nothing. Masks are drawn as for a real one."""

    def denoise(heatmaps, context, t):
        # The barrier stands for a network, which XLA would not fuse with the sampler either. Adding 0 times the masks
        # keeps XLA from leaving them out: it cannot know that they are finite.
        heatmaps, (kps, ske) = jax.lax.optimization_barrier((heatmaps, context))
        return heatmaps.at[0, 0, 0, 0].add(0 * (jnp.sum(kps) + jnp.sum(ske)))

    def run(heatmaps):
        work = {"denoise": denoise, "keys": jax.random.split(jax.random.key(0), len(heatmaps))}
        work["condition"] = lambda y: masks_of(codec.denormalise(y), jnp.ones(y.shape[:2]), codec.size)
        return sample(heatmaps, settings=settings, schedule=Schedule(), codec=codec, **work)[0]

    return run


def sampler(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """What a DDIM step costs beside its network: decoding, the update, noise; with `refresh` the masks too."""
    codec, maps, rows = Codec(SIZE), draw_heatmaps(Codec(SIZE)), []
    for name, eta, refresh in (("eta 0", 0.0, False), ("eta 1", 1.0, False), ("masks too", 0.0, True)):
        runs, total, work = dict[Any, Callable](), 0.0, f"sampler, ddim, {name}"
        for steps in (1, STEPS):
            settings = SamplerSettings(steps=steps, update_rule="ddim", eta=eta, refresh=refresh)
            program, seconds = report.compiled(sampling(settings, codec), maps)
            runs[steps] = functools.partial(program, maps)
            total += seconds
        if "diffusers" in wanted and not refresh:
            runs["diffusers, on heatmaps"] = peers.diffusers_step(np.asarray(maps), eta)
        one, many, *theirs = report.measure(runs).values()
        each = 1e3 * (many.median - one.median) / (STEPS - 1)
        rows.append({"work": work, "unit": "ms a step", "who": "ours", "value": each, "compile_seconds": total})
        rows += [timed(work, "ms a step", "diffusers, on heatmaps", t, 1) for t in theirs]
    return rows


def network(
    wanted: peers.Peers, recipe: Recipe, batches: Sequence[int] = (IMAGES,), dtypes: Sequence[str] = ("float32",)
) -> list[dict]:
    """HRNet-W32 at 256 x 192: inference, and forward with backward, at each dtype and batch; peers in float32."""
    variables = initialise.initial_variables(diffusion_pose.build_model(recipe.override({"model.backbone": "w32"})), 0)
    ours = jax.device_put({kind: tree["hrnet"] for kind, tree in variables.items()})
    rows, device = list[dict](), jax.devices()[0].device_kind

    def backward(net, variables, images):
        def loss(params):
            features, moved = net.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])
            return jnp.mean(features**2), moved

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    for dtype, batch, train in itertools.product(dtypes, batches, (False, True)):
        images = np.random.default_rng(0).normal(size=(batch, *SIZE, 3)).astype(np.float32)
        net, work = hrnet.HRNet(hrnet.HRNetSpec(32), dtype), "W32 forward + backward" if train else "W32 inference"
        function = functools.partial(backward, net) if train else net.apply
        peer = "torch" in wanted and dtype == "float32"
        theirs = {"torch, eager": peers.torch_hrnet(images, train)} if peer else {}
        found = compare(work, "ms an image", function, (ours, jnp.asarray(images, dtype)), theirs, batch)
        rows += [row | {"dtype": dtype, "batch": batch, "device": device} for row in found]
    return rows


def convolution(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """One 3x3 convolution of each resolution of W32, batch 4, float32: alone, and with both of its gradients."""
    rows = list[dict]()

    def backward(x, kernel, gradient):
        y, pull = jax.vjp(layers.convolve, x, kernel)
        return y, pull(gradient)

    for level in range(4):
        channels, height, width = 32 << level, SIZE[0] // 4 >> level, SIZE[1] // 4 >> level
        rng, shape = np.random.default_rng(0), (IMAGES, height, width, channels)
        x, gradient = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
        kernel = rng.normal(size=(3, 3, channels, channels)).astype(np.float32)
        for train in (False, True):
            work = f"{channels} channels, {height}x{width}, 3x3{' + backward' if train else ''}"
            theirs = {"torch, eager": peers.torch_convolution(x, kernel, gradient, train)} if "torch" in wanted else {}
            function, arrays = (backward, (x, kernel, gradient)) if train else (layers.convolve, (x, kernel))
            rows += compare(work, "ms an image", function, jax.device_put(arrays), theirs, IMAGES)
    return rows


def inputs(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """Augmented crops of persons from a folder and from all kinds of records, on one core; and their pixels alone."""
    cv2.setNumThreads(0)
    recipe = recipe.override({"data.root": datasets.data_root(recipe.data)})
    spec, contenders = crop.crop_spec(recipe), {}

    def next_persons(make, count, rng):  # in this thread, in random order
        for index in rng.integers(count, size=PERSONS).tolist():
            make(index)

    def pixels(source):  # of one view each
        rng, args = np.random.default_rng(1), (spec, recipe.augment, recipe.joints)
        views = [crop.draw_view(rng, source[index], *args) for index in range(len(source))]
        windows = [crop.view_window(view) for view in views]
        return lambda index: read_part(source, index, windows[index])

    with tempfile.TemporaryDirectory() as out:
        made: dict[str, dict] = {"folder": {}, "full": {}, "full --tiles": {"tiles": True}, "crops": {}}
        for height in (recipe.input_size[0] * 5 // 4, recipe.input_size[0]):
            made[f"crops --max_height={height}"] = {"max_height": height}
        for name, options in made.items():
            kind, *_ = name.split()
            if "tiles" in options and shutil.which(JPEGTRAN) is None:
                continue
            if kind != "folder":
                build.build(recipe, os.path.join(out, name), kind, **options)
            stored = {} if kind == "folder" else {"data.root": os.path.join(out, name), "data.source": kind}
            source = datasets.make_source(recipe.override(stored), "train", training=True)
            example, rng = loader.train_example(recipe, source), np.random.default_rng(1)
            makers: dict[str, Callable] = {f"ours, {name}": functools.partial(example, rng=rng)}
            makers[f"ours, {name}, pixels alone"] = pixels(source)
            if kind == "folder" and "hrnet" in wanted:
                persons = [source[index] for index in range(len(source))]
                for who, targets in (("hrnet", False), ("hrnet, targets too", True)):
                    makers[who] = peers.hrnet_loader(wanted["hrnet"], persons, targets)
            for who, make in makers.items():
                contenders[who] = functools.partial(next_persons, make, len(source), np.random.default_rng(0))
        return entries("input", "persons/s", contenders, PERSONS)


def start(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """From the command to the end of the first training step of W32, batch 4, on synthetic people; cold, then warm."""
    given = {"data.source": "synthetic", "data.synthetic.train_images": 64}
    given |= {"train.batch_size": 4, "train.steps": 1, "optim.warmup_steps": 0, "model.pretrained": "none"}
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "warm"):
            seconds, *_ = run_training("configs/coco_w32_256x192.py", given, cache, until="metrics.jsonl")
            rows.append({"work": f"start of W32, {state}", "unit": "s", "who": "ours", "value": seconds})
    return rows


def predict(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """From the command to the picture of one image by the bundled model; cold, then warm."""
    rows = []
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as out:
        for state in ("cold", "warm", "warm", "warm"):
            command = ["predict.py", "--input=docs/images/person.jpg", f"--out={out}"]
            seconds, cpu, _ = run_program(command, cache)
            row = {"work": f"predict.py, {state}", "unit": "s", "who": "ours", "value": seconds}
            rows.append(row | {"by_cpu_time": cpu})
    return rows


def memory(wanted: peers.Peers, recipe: Recipe) -> list[dict]:
    """Peak memory of the main process of the demo's training, which 20 steps reach."""
    with tempfile.TemporaryDirectory() as cache:
        *_, peak = run_training("configs/synthetic.py", {"train.steps": 20, "optim.warmup_steps": 1}, cache)
    return [{"work": "peak memory of the demo", "unit": "GB", "who": "ours", "value": peak / 1e9}]


def run_training(config: str, overrides: dict, cache: str, until: str | None = None) -> tuple[float, float, int]:
    """`run_program` of train.py with a workdir of its own; `until` is a file in it."""
    with tempfile.TemporaryDirectory() as workdir:
        command = ["train.py", f"--config={config}", f"--workdir={workdir}"]
        command += [f"--config.{name}={value}" for name, value in overrides.items()]
        return run_program(command, cache, until and os.path.join(workdir, until))


def run_program(command: list[str], cache: str, until: str | None = None) -> tuple[float, float, int]:
    """Runs a program of the clone: its seconds of wall clock and processor, its main process's peak memory in bytes.

    `cache` is the folder of compiled programs. The clock stops when the file `until` has a first byte, within a
    tenth of a second. Raises ValueError if the program fails.
    """
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    began, before, peak, printed, seconds = time.perf_counter(), os.times(), 0, None, None
    process = Popen([sys.executable, *command], cwd=ROOT, env=environment, text=True, stdout=PIPE, stderr=STDOUT)
    while printed is None:
        peak = max(peak, peak_memory(process.pid))  # that of `wait` starts with the parent's memory
        with contextlib.suppress(TimeoutExpired):
            printed, _ = process.communicate(timeout=0.1)
        if seconds is None and (printed is not None or until and os.path.exists(until) and os.path.getsize(until)):
            seconds = time.perf_counter() - began
    after = os.times()
    if process.returncode:
        raise ValueError(f"{' '.join(command)}: {printed[-2000:]}")
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return seconds, cpu, peak


def peak_memory(pid: int) -> int:
    """Peak memory of a running process on Linux, bytes; 0 elsewhere and when it has just ended."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
        return 1024 * int(found[1]) if found else 0
    return 0
