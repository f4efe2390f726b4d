"""The peers of the table of speeds, each doing the same work on the same arrays; all of them are optional.

`torch` is the tests' reference of HRNet in PyTorch, `diffusers` PyPI's package, `hrnet:FOLDER` a clone of the official
HRNet repository.
"""

import importlib.util
import os
import pathlib
import sys
import types
from collections.abc import Callable

import numpy as np

from dpose_jax.models.hrnet import PRESETS
from dpose_jax.skeletons import COCO

PACKAGES = {"torch": "torch", "diffusers": "diffusers", "hrnet": "torch"}
TESTS = pathlib.Path(__file__).parents[2] / "tests"
Peers = dict[str, str]


def parse(names: list[str]) -> Peers:
    """`NAME` or `NAME:FOLDER` -> name: folder.

    Raises:
      ValueError: if a name is unknown, its package is not installed, or its folder is none of its repository.
    """
    found = {}
    for text in names:
        name, _, folder = text.partition(":")
        if name not in PACKAGES:
            raise ValueError(f"--peer={text}: must be among torch, diffusers, hrnet:FOLDER")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(f"--peer={text}: {PACKAGES[name]} is not installed; pip install {PACKAGES[name]}")
        if name == "hrnet" and not os.path.isfile(os.path.join(folder, "lib", "dataset", "JointsDataset.py")):
            raise ValueError(f"--peer={text}: must be hrnet:FOLDER with lib/dataset/JointsDataset.py in the folder")
        found[name] = folder
    return found


def hrnet_targets(folder: str, keypoints: np.ndarray, visible: np.ndarray) -> Callable[[], object]:
    """Its loader's heatmaps of (B, J, 2) crop pixels, person by person as it draws them."""
    module = _load(folder, "lib/dataset/JointsDataset.py")
    dataset = module.JointsDataset.__new__(module.JointsDataset)
    settings = {
        "num_joints": COCO.num_joints,
        "target_type": "gaussian",
        "image_size": np.array([192, 256]),
        "heatmap_size": np.array([48, 64]),
        "sigma": 2,
        "use_different_joints_weight": False,
    }
    for name, value in settings.items():
        setattr(dataset, name, value)
    joints = np.concatenate([keypoints, np.zeros_like(keypoints[..., :1])], axis=-1)
    flags = np.repeat(visible[..., None], 3, axis=-1)
    return lambda: [dataset.generate_target(*person) for person in zip(joints, flags, strict=True)]


def hrnet_decode(folder: str, heatmaps: np.ndarray) -> Callable[[], object]:
    """Its get_final_preds of (B, H, W, J) heatmaps, moved to its layout beforehand."""
    module = _load(folder, "lib/core/inference.py")
    maps = np.ascontiguousarray(heatmaps.transpose(0, 3, 1, 2))
    config = types.SimpleNamespace(TEST=types.SimpleNamespace(POST_PROCESS=True))
    centres, scales = np.tile([95.5, 127.5], (len(maps), 1)), np.tile([0.96, 1.28], (len(maps), 1))
    return lambda: module.get_final_preds(config, maps, centres, scales)


def diffusers_step(heatmaps: np.ndarray, eta: float) -> Callable[[], object]:
    """One step of its DDIM scheduler on heatmaps, which are what it can noise."""
    import torch
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(9)
    maps = torch.from_numpy(np.ascontiguousarray(heatmaps.transpose(0, 3, 1, 2)))
    t = scheduler.timesteps[0]
    return lambda: scheduler.step(maps, t, maps, eta=eta).prev_sample


def torch_hrnet(images: np.ndarray, train: bool) -> Callable[[], object]:
    """HRNet-W32 in eager PyTorch, channels last: (B, Hx, Wx, 3) float32 -> features, or the gradient of their power."""
    import torch

    sys.path.append(str(TESTS))
    from torch_hrnet import TorchHRNet  # type: ignore[import-not-found]

    net = TorchHRNet(PRESETS["w32"], 1).to(memory_format=torch.channels_last).train(train)
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)

    def forward():
        with torch.inference_mode():
            return net(batch)[0]

    def backward():
        net.zero_grad()
        net(batch)[0].square().mean().backward()

    return backward if train else forward


def _load(folder: str, path: str):
    """A module of a clone by its file, past its package, whose other modules need compiled extensions."""
    file = pathlib.Path(folder) / path
    lib = str(pathlib.Path(folder) / "lib")
    if lib not in sys.path:
        sys.path.append(lib)
    spec = importlib.util.spec_from_file_location(f"peer_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"--peer=hrnet:{folder}: cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
