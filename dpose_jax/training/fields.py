"""Checks of fields that come before the first compile, whichever entry point runs."""

from dpose_jax.data.datasets import SPLITS
from dpose_jax.diffusion.sampler import sampler_settings
from dpose_jax.evaluation.coco import ENGINES
from dpose_jax.training.state import make_optimizer


def check_fields(config) -> None:
    """Raises ValueError, naming the field, for what would otherwise fail only after the first compile."""
    train, data, eval_ = config.train, config.data, config.eval
    for name, pair in (("diffusion.t_range", config.diffusion.t_range), ("model.head_dim", config.model.head_dim)):
        if len(pair) != 2:
            raise ValueError(f"{name}={pair}: must be two numbers")
    for name, value, low in (
        ("seed", config.seed, 0),
        ("data.synthetic.seed", data.synthetic.seed, 0),
        ("train.steps", train.steps, 1),
        ("train.log_every", train.log_every, 1),
        ("train.checkpoint_every", train.checkpoint_every, 1),
        ("train.keep_checkpoints", train.keep_checkpoints, 1),
        ("train.accumulate", train.accumulate, 1),
        ("train.evaluate_every", train.evaluate_every, 0),
        ("profile_steps", config.profile_steps, 0),
        ("data.workers", data.workers, 0),
        ("eval.pictures", eval_.pictures, 0),
    ):
        if value < low:
            raise ValueError(f"{name}={value}: must be at least {low}")
    if not 0 <= data.max_bad_share <= 1:
        raise ValueError(f"data.max_bad_share={data.max_bad_share}: must lie in [0, 1]")
    for name, choice, choices in (
        ("eval.split", eval_.split, SPLITS),
        ("eval.engine", eval_.engine, ENGINES),
    ):
        if choice not in choices:
            raise ValueError(f"{name}={choice!r}: must be one of {choices}")
    if not 0 < eval_.nms <= 1:
        raise ValueError(f"eval.nms={eval_.nms}: must lie in (0, 1]; 1 turns it off")
    sampler_settings(config)
    make_optimizer(config)
