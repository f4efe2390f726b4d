"""What all tests share: the platform, and where real data lies."""

import os
import pathlib

import pytest

# Before the first import of JAX. A test compares with bounds for float32 on the CPU; another platform can be asked for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def data_root() -> pathlib.Path:
    """The folder that DPOSE_DATA names, which holds coco/, lspet/ and samples/; skips without the variable."""
    root = os.environ.get("DPOSE_DATA")
    if not root:
        pytest.skip("DPOSE_DATA is not set: it names the folder that holds coco/, lspet/ and samples/")
    path = pathlib.Path(root)
    if not path.is_dir():
        pytest.fail(f"DPOSE_DATA={root!r}: no such folder")
    return path
