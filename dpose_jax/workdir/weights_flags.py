"""The flags that name a published pose model: --weights, --joint_set, --input_size."""

from typing import Any

from absl import flags

from dpose_jax.models.weights.published import PUBLISHED
from dpose_jax.runtime import app


def define(help_text: str) -> flags.FlagHolder:
    """Defines the three; returns --weights."""
    flags.DEFINE_string("joint_set", None, "Of --weights, where their number of joints does not tell it.")
    flags.DEFINE_list("input_size", None, "Of --weights, HEIGHT,WIDTH, where the file does not tell it.")
    weights = flags.DEFINE_string("weights", None, f"{help_text}: {', '.join(PUBLISHED)}, or its file.")
    for name in ("joint_set", "input_size"):
        app.only_with(name, "weights")
    return weights


def options() -> dict[str, Any]:
    """What the other two say, as arguments of `published.read_pose_model`. Raises ValueError if a size is no size."""
    size = flags.FLAGS.input_size
    try:
        sides = None if size is None else tuple(int(side) for side in size)
    except ValueError:
        raise ValueError(f"--input_size={','.join(size)!r}: must be HEIGHT,WIDTH, as 256,192") from None
    return {"joint_set": flags.FLAGS.joint_set, "input_size": sides}
