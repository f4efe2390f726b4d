"""A whole run in seconds: every part of the method over drawn people.

A recipe like those of configs/, so that the command line can be given it too.
"""

from configs import base
from dpose_jax.models.backbones import BACKBONES, hrnet_backbone
from dpose_jax.models.hrnet import HRNetSpec

# Every part of HRNet once.
BACKBONES["miniature"] = hrnet_backbone(HRNetSpec(8, modules=(1, 1, 1), blocks=1, stem=8, stem_blocks=1, stem_width=4))
# One branch, half of the time to compile: for every test that is not about the branches.
BACKBONES["speck"] = hrnet_backbone(HRNetSpec(8, modules=(0, 0, 0), blocks=1, stem=8, stem_blocks=1, stem_width=4))


def get_config():
    c = base.get_config()
    c.input_size = (64, 64)

    c.data.source = "synthetic"
    c.data.workers = 0
    c.data.synthetic.train_images = 8
    c.data.synthetic.val_images = 3

    c.model.backbone = "speck"
    c.model.pretrained = "none"
    c.model.head_dim = (8, 16)
    c.model.decoder_channels = 8
    c.model.decoder_blocks = 1

    c.optim.base_batch = 0
    c.optim.warmup_steps = 1
    c.optim.ema = 0.9
    c.optim.weight_decay = 1e-4

    c.train.batch_size = 8
    c.train.steps = 4
    c.train.log_every = 2
    c.train.checkpoint_every = 2

    c.sampler.steps = (1, 2)

    c.eval.batch_size = 4
    c.eval.pictures = 3
    return c
