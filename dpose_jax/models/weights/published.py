"""Published HRNet pose models as plain HRNet: where they lie, and the recipe of their authors' protocol."""

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.hrnet import HRNetSpec
from dpose_jax.models.weights import hub
from dpose_jax.models.weights.fill import BACKBONE, fill
from dpose_jax.models.weights.hrnet_keys import BACKBONE_PREFIX, FINAL_LAYER, from_published
from dpose_jax.models.weights.torch_pickle import TorchFile
from dpose_jax.pose.joint_sets import get_joint_set
from dpose_jax.recipe import Recipe
from dpose_jax.typed_fields import nearest

SIGMAS = {(256, 192): 2.0, (384, 288): 3.0}  # of the Gaussians that published models were trained with, heatmap px
# Without SC-CA, which belongs to the denoiser.
PROTOCOL = {
    "crop.warp": "rounded", "codec.name": "rounded", "codec.refine": "quarter", "loss.diffusion": 0.0,
    "model.pretrained": "none", "model.spatial_attention": False, "model.channel_attention": False,
}  # fmt: skip
LICENCE = "weights of the official HRNet (MIT licence), trained on COCO 2017, whose photos are their authors'"


class Published(NamedTuple):
    """A pose model of COCO's joints on the Hugging Face Hub: official HRNet's weights."""

    repository: str
    file: str
    sha256: str
    input_size: tuple[int, int]  # (height, width) of its crops, px
    megabytes: int  # of the download, about
    ap: float  # on COCO val2017, 56.4-AP boxes, flip test, in points, as its authors report


PUBLISHED = {
    "hrnet_w32": Published(
        "LibreYOLO/LibreHRNetw32-pose", "LibreHRNetw32-pose.pt",
        "c9d8eb383e63ce795f87a3ee2f2b0c8aa0df9bae981573ec4b3909d63815a825", (256, 192), 115, 74.4),
    "hrnet_w32_official": Published(
        "Prophetetc/cocopose", "pose_hrnet_w32_256x192.pth",
        "19bc083708bb8d873211e50d85d56344c10290c6e8b564c813fdde09645c4c1c", (256, 192), 115, 74.4),
    "hrnet_w48_384x288": Published(
        "LibreYOLO/LibreHRNetw48-pose", "LibreHRNetw48-pose.pt",
        "ab85504f323c43babdcbed6550f759d323efd0ffc284a0593043e108cd3c4df5", (384, 288), 255, 76.3),
}  # fmt: skip


def fetch(name: str, own: str = "--weights=FILE") -> str:
    """The file of a name of PUBLISHED, cached or downloaded once; prints what it is, before it downloads.

    `own` is the flag that takes a file of the user's instead.
    Raises ConnectionError if the hub does not give it, ValueError without the hub extra, or if its hash differs.
    """
    wanted, field = PUBLISHED[name], f"weights {name!r}"
    what = (
        f"{wanted.file} of {wanted.repository}, about {wanted.megabytes} MB, {LICENCE}; AP {wanted.ap} by its authors"
    )
    hub.require(field)
    path = hub.cached(wanted.repository, wanted.file)
    print(f"{field}: {'in the cache' if path else 'downloading from the Hugging Face Hub, once'}: {what}")
    path = path or hub.download(field, wanted.repository, wanted.file, own)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted.sha256:
        hashes = f"{path} of {wanted.repository} has SHA-256 {found}, expected {wanted.sha256}"
        raise ValueError(f"{field}: {hashes}; delete it to download it again. A file of your own: {own}")
    return path


def read_pose_model(
    source: str, *, joint_set: str | None = None, input_size: tuple[int, int] | None = None
) -> tuple[Recipe, dict[str, Any]]:
    """A published pose model: the recipe of HRNet's protocol, `params` and `batch_stats` of HRNet and coarse branch.

    `source` is a name of PUBLISHED, or a file of official HRNet, mmpose, or timm's layout with a head. `joint_set` and
    `input_size`, (height, width) in px, are needed where neither the file nor its name tells them. Raises
    FileNotFoundError if there is no such file, ConnectionError if the hub does not give it, and ValueError, which names
    the file, if it is no pose model or contradicts the arguments.
    """
    wanted = PUBLISHED.get(source)
    path = fetch(source) if wanted else source
    if not os.path.isfile(path):
        names = f"names are {', '.join(PUBLISHED)}{nearest(source, PUBLISHED)}"
        raise FileNotFoundError(f"weights {source!r}: no such file; {names}")
    tensors, metadata = hub.read(path)
    width, joints = _identify(path, tensors)
    size = input_size or (wanted.input_size if wanted else _told_size(path, metadata))
    if size is None:
        raise ValueError(f"{path}: neither the file nor its name tells the input size; --input_size=256,192 does")
    if size not in SIGMAS:
        raise ValueError(f"{path}: input_size={size}: published models have one of {sorted(SIGMAS)}")
    name = joint_set or ("coco" if joints == 17 else None)
    if name is None:
        raise ValueError(f"{path}: its head has {joints} joints; --joint_set=NAME or FILE says which they are")
    count = get_joint_set(name).num_joints
    if count != joints:
        raise ValueError(f"{path}: its head has {joints} joints, joint_set={name!r} has {count}; give that of the file")
    backbone = {"model.backbone": "w48" if width == 48 else "w32", "model.width": None if width in (32, 48) else width}
    chosen = {"joint_set": name, "input_size": size, "codec.sigma": SIGMAS[size]}
    recipe = Recipe().override(PROTOCOL | chosen | backbone)
    weights = from_published(tensors, HRNetSpec(width))
    return recipe, fill(_plain_shapes(recipe), weights, path, whole=(BACKBONE, "coarse_head"))[0]


@functools.cache
def _plain_shapes(recipe: Recipe) -> Any:
    model, image = build_model(recipe), jax.ShapeDtypeStruct((1, *recipe.input_size, 3), np.uint8)
    return jax.eval_shape(lambda image: model.init(jax.random.key(0), image, method="encode"), image)


def _identify(path: str, tensors: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Width and number of joints of a pose model's tensors."""

    def find(layer):
        found = [tensor for name, tensor in tensors.items() if re.fullmatch(rf"{layer}\.weight", name)]
        return found[0] if len(found) == 1 and found[0].ndim == 4 else None

    first, head = find(rf"{BACKBONE_PREFIX}stage2\.0\.branches\.0\.0\.conv1"), find(FINAL_LAYER)
    if first is None:
        some = ", ".join(list(tensors)[:3])
        raise ValueError(f"{path}: no HRNet pose model: it has no stage2; its tensors begin with {some}")
    if head is None:
        what = "an HRNet without a head for joints, as classification models are"
        raise ValueError(f"{path}: {what}; to train from it: --config.model.pretrained={path}")
    return first.shape[0], head.shape[0]


def check_pose_model(path: str, found: TorchFile, recipe: Recipe) -> None:
    """Raises ValueError, which names both numbers, if a file is no pose model of the recipe's joints and input size."""
    joints, wanted = _identify(path, found.tensors)[1], recipe.joints
    if joints != wanted.num_joints:
        raise ValueError(
            f"{path}: its head has {joints} joints, joint_set {wanted.name!r} has {wanted.num_joints}; with other "
            "joints, train a coarse branch too: --config.loss.coarse=1"
        )
    size = _told_size(path, found.metadata)
    if size not in (None, recipe.input_size):
        raise ValueError(
            f"{path}: a model of {size[0]}x{size[1]} crops, the recipe has input_size={recipe.input_size}; set that of "
            f"the file, with its codec.sigma={SIGMAS[size]}"
        )


def _told_size(path: str, metadata: Mapping[str, Any]) -> tuple[int, int] | None:
    """The input size that a file's metadata or its name tells, None where neither does."""
    pairs = [tuple(value) for value in metadata.values() if isinstance(value, tuple | list)]
    text = f"{os.path.basename(path)} {list(metadata.values())}"
    told = [size for size in SIGMAS if size in pairs or size[::-1] in pairs]
    told += [size for size in SIGMAS if re.search(rf"(?<!\d){size[0]}x{size[1]}(?!\d)", text)]
    return told[0] if told else None
