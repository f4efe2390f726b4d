"""Published weights: a file, or the Hugging Face Hub and its cache. Nothing is downloaded unasked."""

import os

from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from dpose_jax.models.backbones import BACKBONES
from dpose_jax.models.weights.torch_pickle import TorchFile, read_checkpoint

HUB = "hf:"
CACHED = "imagenet"
HUB_FILE = "model.safetensors"


def locate(source: str, backbone: str) -> str:
    """The file that `model.pretrained` names.

    `source` is a path; `hf:OWNER/REPO` or `hf:OWNER/REPO/FILE`, downloaded once; or `imagenet`, the hub's ImageNet
    weights of `backbone`, a name of BACKBONES, if the cache holds them. Raises FileNotFoundError, which says where to
    get it, if there is no such file, ValueError for another source, and ConnectionError if the hub does not give it.
    """
    field, repository = f"model.pretrained={source!r}", BACKBONES[backbone].imagenet
    flag = "--config.model.pretrained="
    hub = f'{flag}hf:{repository} downloads them once (pip install -e ".[hub]"); ' if repository else ""
    ways = (
        f"ImageNet weights: {hub}{flag}FILE reads a file of official HRNet, timm or mmpose; {flag}none starts from "
        "random weights. See docs/pretrained.md"
    )
    if source == CACHED:
        if repository is None:
            known = sorted(name for name, one in BACKBONES.items() if one.imagenet)
            nobody = f"nobody publishes weights of model.backbone={backbone!r}, only of {known}"
            raise ValueError(f"{field}: {nobody}; random weights: {flag}none")
        path = cached(repository, HUB_FILE)
        if path is None:
            raise FileNotFoundError(f"{field}: none in the cache. {ways}")
        return path
    if source.startswith(HUB):
        owner, name, *rest = [*source.removeprefix(HUB).split("/", 2), ""]
        if not owner or not name:
            raise ValueError(f"{field}: must be hf:OWNER/REPO or hf:OWNER/REPO/FILE")
        return download(field, f"{owner}/{name}", rest[0] or HUB_FILE, f"{flag}FILE")
    if not os.path.exists(source):
        raise FileNotFoundError(f"{field}: no such file. {ways}")
    return source


def read(path: str) -> TorchFile:
    """The tensors and the metadata of a safetensors or PyTorch file; ValueError, which names it, if it is neither."""
    with open(path, "rb") as file:
        if file.read(9)[8:] != b"{":
            return read_checkpoint(path)
    try:
        with safe_open(path, "np") as opened:
            return TorchFile(load_file(path), dict(opened.metadata() or {}))
    except SafetensorError as error:
        raise ValueError(f"{path}: broken or cut short: {error}") from error
    except (AttributeError, ValueError) as error:  # numbers of 8 bits, an array of 65 dimensions
        raise ValueError(f"{path}: holds arrays that numpy has not: {error}") from error


def cached(repository: str, name: str) -> str | None:
    """The file of a repository in Hugging Face's cache, None where it is not there; asks no server."""
    try:
        from huggingface_hub import hf_hub_download

        return hf_hub_download(repository, name, local_files_only=True)
    except (ImportError, OSError):
        return None


def require(field: str) -> None:
    """Raises ValueError without the hub extra."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise ValueError(f'{field}: needs the hub extra: pip install -e ".[hub]"') from None


def download(field: str, repository: str, name: str, own: str) -> str:
    """The file of a repository, downloaded once; `own` is the flag that takes what the user has instead.

    ValueError without the hub extra, ConnectionError if the hub fails.
    """
    require(field)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    try:
        return hf_hub_download(repository, name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        if isinstance(error, LocalEntryNotFoundError):  # neither there nor in the cache
            reason = "the Hugging Face Hub does not answer, there may be no network"
        raise ConnectionError(
            f"{field}: {repository} gives no {name}: {reason}; {own} takes one that you have"
        ) from error
