"""What the small recipes share: a model of 1.7 M parameters that trains on two CPU cores. Not run by itself."""

from configs import base


def get_config():
    """Returns the base recipe with a tiny network, half-size crops and a cosine schedule."""
    c = base.get_config()
    c.input_size = (128, 96)
    c.data.workers = 1
    c.augment.half_body = 0.0
    c.codec.update(sigma=1.5, blur=5)
    c.model.update(backbone="tiny", pretrained="none", decoder_channels=32, decoder_blocks=1)
    c.optim.update(learning_rate=2e-3, base_batch=0, schedule="cosine", warmup_steps=100, weight_decay=1e-4)
    c.train.update(batch_size=32, checkpoint_every=500)
    return c
