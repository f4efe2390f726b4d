"""What the small recipes share: a model of 1.7 M parameters that trains on two CPU cores. Not run by itself."""

from configs import base


def get_config():
    """Returns the base recipe with a tiny network, half-size crops and a cosine schedule."""
    c = base.get_config()
    c.input_size = (128, 96)
    c.data.workers = 1
    c.augment.half_body = 0.0
    c.codec.sigma = 1.5
    c.codec.blur = 5

    c.model.backbone = "tiny"
    c.model.pretrained = "none"
    c.model.decoder_channels = 32
    c.model.decoder_blocks = 1

    c.optim.learning_rate = 2e-3
    c.optim.base_batch = 0
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 100
    c.optim.weight_decay = 1e-4

    c.train.batch_size = 32
    c.train.checkpoint_every = 500
    return c
