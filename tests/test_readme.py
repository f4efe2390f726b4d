"""What the README shows first works in a fresh clone."""

import os
import pathlib
import re
import subprocess
import sys

import cv2

ROOT = pathlib.Path(__file__).parents[1]


def test_the_first_snippet_runs(tmp_path):
    """It prints the poses and draws them on the image that it names."""
    (snippet, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Poses(1 person, 17 joints of 'coco', scores [0.")
    drawn, image = (cv2.imread(str(path)) for path in (tmp_path / "drawn.png", ROOT / "docs/images/person.jpg"))
    assert drawn.shape == image.shape and 0.01 < (drawn != image).any(axis=-1).mean() < 0.3
