"""Synthetic people, drawn on the fly."""

from dpose_jax.data.synthetic.dataset import VAL_FIRST_INDEX, SyntheticSource, write_coco_folder

__all__ = ["VAL_FIRST_INDEX", "SyntheticSource", "write_coco_folder"]
