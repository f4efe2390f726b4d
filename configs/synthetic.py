"""Synthetic people drawn on the fly, 17 COCO joints: what `make demo` trains in a few minutes on two CPU cores."""

from configs import base


def get_config():
    c = base.get_config()
    c.input_size = (128, 96)
    c.data.source = "synthetic"
    c.data.synthetic.train_images = 4000
    c.data.synthetic.val_images = 200
    c.data.synthetic.difficulty = 0.25
    c.data.workers = 1

    c.augment.half_body = 0.0
    c.augment.rotation = 20.0
    c.augment.scale = 0.2
    c.codec.sigma = 1.5
    c.codec.blur = 5

    c.diffusion.own_share = 0.5

    c.model.backbone = "tiny"
    c.model.decoder_channels = 32
    c.model.decoder_blocks = 1

    c.optim.learning_rate = 2e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 50
    c.optim.weight_decay = 1e-4

    c.train.batch_size = 32
    c.train.steps = 600
    c.train.log_every = 20
    c.train.checkpoint_every = 300
    return c
