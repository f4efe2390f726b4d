"""What the small recipes share: a model that trains on two CPU cores, in the form that won. Not run by itself.

Sub-pixel heads and the light denoiser, without SC-CA: docs/appendix/ablations.md. The paper's form, a U-Net with SC-CA
at stride 4, is one override of each field away: UNET of benchmarks/study/variants.py.
"""

from configs import base


def get_config():
    """Returns the base recipe with a tiny network, half-size crops and a cosine schedule."""
    c = base.get_config()
    c.input_size = (128, 96)
    c.data.workers = 1
    c.augment.half_body = 0.0
    c.codec.update(sigma=1.5, blur=5)
    c.stride = 2
    c.model.update(backbone="tiny", pretrained="none", decoder_channels=32, decoder_blocks=1)
    c.model.update(upsampling="subpixel", decoder="light", spatial_attention=False, channel_attention=False)
    c.optim.update(learning_rate=2e-3, base_batch=0, schedule="cosine", warmup_steps=100, weight_decay=1e-4)
    c.train.update(batch_size=32, checkpoint_every=500)
    return c
