"""The peers of the table of speeds, on the same arrays: PyTorch, diffusers, and a clone of HRNet's repository."""

import gc
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace as Section

import jax
import numpy as np

from dpose_jax.data import crop
from dpose_jax.data.sample import Person
from dpose_jax.models.hrnet import HRNetSpec
from dpose_jax.pose.joint_sets import COCO

PACKAGES = {"torch": "torch", "diffusers": "diffusers", "hrnet": "torchvision"}  # of each peer
Peers = dict[str, str]  # name: folder


def parse(names: list[str]) -> Peers:
    """`NAME` or `NAME:FOLDER` as Peers. Raises ValueError if one is unknown or what it needs is missing."""
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
    """HRNet's target heatmaps of (B, J, 2) crop pixels, one person at a time as its loader draws them."""
    dataset, joints = _hrnet_dataset(folder), np.insert(keypoints, 2, 0, axis=-1)
    flags = np.repeat(visible[..., None], 3, axis=-1)
    return lambda: [dataset.generate_target(*person) for person in zip(joints, flags, strict=True)]


def hrnet_loader(folder: str, persons: Iterable[Person], targets: bool) -> Callable[[int], object]:
    """Index -> HRNet's training example: the crop alone, as ours, or with `targets` normalised and with heatmaps."""
    from torchvision import transforms

    dataset = _hrnet_dataset(folder)
    dataset.db = [_hrnet_record(person) for person in persons]
    if targets:
        normalise = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        dataset.transform = transforms.Compose([transforms.ToTensor(), normalise])
    else:
        dataset.generate_target = lambda joints, flags: (np.zeros(0, np.float32),) * 2
    return dataset.__getitem__


def _hrnet_dataset(folder: str):
    """HRNet's data set for COCO at 256 x 192 with the settings of its w32 recipe, without persons."""
    data = Section(DATA_FORMAT="jpg", SCALE_FACTOR=0.35, ROT_FACTOR=45, FLIP=True, COLOR_RGB=True)
    data.NUM_JOINTS_HALF_BODY, data.PROB_HALF_BODY = 8, 0.3
    model = Section(TARGET_TYPE="gaussian", IMAGE_SIZE=[192, 256], HEATMAP_SIZE=[48, 64], SIGMA=2)
    config = Section(OUTPUT_DIR="", DATASET=data, MODEL=model, LOSS=Section(USE_DIFFERENT_JOINTS_WEIGHT=False))
    dataset = _load(folder, "lib/dataset/JointsDataset.py")["JointsDataset"](config, folder, "train", True)
    dataset.num_joints, dataset.flip_pairs, dataset.aspect_ratio = COCO.num_joints, COCO.flip_pairs, 192 / 256
    dataset.upper_body_ids = COCO.upper_body
    return dataset


def _hrnet_record(person: Person) -> dict:
    """A person as HRNet's data sets list it: the box in the crop's shape, a quarter wider, in units of 200 pixels."""
    view, flags = crop.widened_view(person.bbox, 192 / 256, 1.25), np.minimum(person.keypoints[:, 2:], 1)
    center, scale = view.center.astype(np.float32), view.size.astype(np.float32) / 200
    joints = np.concatenate([person.keypoints[:, :2] * flags, 0 * flags], axis=-1, dtype=np.float64)
    visible = np.concatenate([flags, flags, 0 * flags], axis=-1, dtype=np.float64)
    return {"image": person.file, "center": center, "scale": scale, "joints_3d": joints, "joints_3d_vis": visible}


def hrnet_decode(folder: str, heatmaps: np.ndarray) -> Callable[[], object]:
    """HRNet's get_final_preds of (B, H, W, J) heatmaps, transposed to its layout beforehand."""
    decode = _load(folder, "lib/core/inference.py")["get_final_preds"]
    maps = np.ascontiguousarray(heatmaps.transpose(0, 3, 1, 2))
    centres, scales = np.tile([95.5, 127.5], (len(maps), 1)), np.tile([0.96, 1.28], (len(maps), 1))
    return lambda: decode(Section(TEST=Section(POST_PROCESS=True)), maps, centres, scales)


def diffusers_step(heatmaps: np.ndarray, eta: float) -> Callable[[], object]:
    """One step of its DDIM scheduler, on heatmaps: it has no joints."""
    import torch
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(9)
    maps, t = torch.from_numpy(heatmaps.transpose(0, 3, 1, 2)).contiguous(), scheduler.timesteps[0]
    return lambda: scheduler.step(maps, t, maps, eta=eta).prev_sample


def torch_hrnet(images: np.ndarray, train: bool) -> Callable[[], object]:
    """The tests' HRNet-W32 in eager PyTorch: (B, Hx, Wx, 3) float32 -> features, or the gradient of their power."""
    import torch

    net = _torch_hrnet(32, 1).to(memory_format=torch.channels_last).train(train)
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)

    def backward():
        net.zero_grad()
        net(batch)[0].square().mean().backward()

    return backward if train else torch.inference_mode()(lambda: net(batch)[0])


def torch_convolution(x: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, train: bool) -> Callable[[], object]:
    """PyTorch's 3x3 convolution (oneDNN on a CPU) of `layers.convolve`'s arrays, or with `train` both its gradients."""
    import torch

    def put(array, axes):
        return torch.from_numpy(array.transpose(axes)).contiguous(memory_format=torch.channels_last)

    maps, weight, pulled = put(x, (0, 3, 1, 2)), put(kernel, (3, 2, 0, 1)), put(gradient, (0, 3, 1, 2))

    def run():
        return torch.nn.functional.conv2d(maps, weight, padding=1)

    if not train:
        return torch.inference_mode()(run)
    maps.requires_grad_(), weight.requires_grad_()
    return lambda: torch.autograd.grad(run(), (maps, weight), pulled)


def torch_place() -> str:
    """Where PyTorch runs, cuda or cpu. Raises ValueError where JAX has an accelerator that PyTorch does not see."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if (ours := jax.default_backend()) != "cpu":
        built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, finds no GPU"
        raise ValueError(f"--peer=torch: JAX runs on {ours!r}, but {built}: benchmarks/gpu.sh names wheels that agree")
    return "cpu"


def torch_versions() -> dict[str, str]:
    """The versions of PyTorch, and of the CUDA and cuDNN that it loads; its wheels may bring others than JAX's."""
    import torch

    found = {"torch": torch.__version__, "torch's CUDA": torch.version.cuda}
    return {name: str(version) for name, version in (found | {"torch's cuDNN": torch.backends.cudnn.version()}).items()}


def release_torch() -> None:
    """Gives back the GPU's memory that PyTorch keeps: of networks, of compiled code with its CUDA graphs, freed."""
    import torch

    torch.compiler.reset()  # after a few batch sizes it would run uncompiled, too
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def torch_compiled(width: int, joints: int, size: tuple[int, ...], dtype: str, train: bool) -> tuple[Callable, dict]:
    """HRNet in PyTorch on the GPU if there is one, channels last, by torch.compile: a call, and what it takes.

    The call is inference, by CUDA graphs, or a train step: L2 loss, gradient, fused Adam, under autocast. float32
    products are TF32, as ours. `size` is (B, Hx, Wx, 3). Memory is that of a call, not of compiling and trying kernels.
    """
    import torch

    place, kind = torch_place(), getattr(torch, dtype)
    net = _torch_hrnet(width, joints)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    net = net.to(place, memory_format=torch.channels_last).train(train)
    batch = torch.randn(size[0], 3, *size[1:3], device=place).contiguous(memory_format=torch.channels_last)
    if train:
        target = torch.rand(size[0], joints, size[1] // 4, size[2] // 4, device=place)
        compiled, adam = torch.compile(net, dynamic=False), torch.optim.Adam(net.parameters(), fused=True)

        def run():
            adam.zero_grad(set_to_none=True)
            with torch.autocast(place, kind, enabled=dtype != "float32"):
                loss = (compiled(batch)[1].float() - target).square().mean()
            loss.backward()
            adam.step()
    else:
        compiled, batch = torch.compile(net.to(kind), dynamic=False, mode="reduce-overhead"), batch.to(kind)
        run = torch.inference_mode()(lambda: compiled(batch)[1])

    def call():
        run()
        if place == "cuda":
            torch.cuda.synchronize()

    for done in range(3):
        call()  # the first compiles and tries kernels; the second makes Adam's moments whole, or records CUDA graphs
        if place == "cuda" and done == int(train):
            torch.cuda.reset_peak_memory_stats()
    return call, {"memory_mib": torch.cuda.max_memory_allocated() / 2**20} if place == "cuda" else {}


def _torch_hrnet(width: int, joints: int):
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from torch_hrnet import TorchHRNet  # type: ignore[import-not-found]

    return TorchHRNet(HRNetSpec(width), joints)


def _load(folder: str, path: str) -> dict:
    """The names that a file of a clone defines. Its package cannot be imported: it needs compiled extensions."""
    sys.path.append(os.path.join(folder, "lib"))
    return runpy.run_path(os.path.join(folder, path))
