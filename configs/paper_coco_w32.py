"""DiffusionPose with the settings of the paper: COCO 2017, HRNet-W32, 256 x 192. Not yet trained.

Values that the paper does not give are marked (ours), here or in dpose_jax/recipe.py for fields that are not named
here. They follow HRNet's published recipe where it has the field. The equations are in docs/model.md. `data.root` is
COCO's official layout with the boxes of the 56.4-AP person detector, which published results use.

  python train.py --config=configs/paper_coco_w32.py --workdir=DIR --config.data.root=COCO
"""

from configs import coco_w32_256x192


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = coco_w32_256x192.get_config()
    c.eval.boxes = "detections"
    c.crop.warp = c.codec.name = "rounded"  # the paper does not state crop and codec: HRNet's (ours)
    c.codec.update(refine="quarter", sigma=2.0, label_margin=3.0)

    c.diffusion.update(timesteps=1000, zeta=2.0)  # T (ours, after DDPM) and ζ (ours)
    c.diffusion.schedule = "cosine"  # (ours, after improved DDPM)
    c.diffusion.t_range = (1, 1000)  # t is uniform over 1..T
    c.diffusion.own_share = 0.0  # the decoder is trained on noised joints alone

    c.masks.update(keypoints=True, skeleton=True)
    c.masks.update(radius=6.0, half_width=3.0, softness=0.0)  # (ours)

    c.model.update(backbone="w32", pretrained="imagenet", spatial_attention=True, channel_attention=True)
    c.model.channel_scale = "width"  # d^-1/2 (ours, after DaViT)
    c.model.decoder_channels = 64  # the paper's are 64, 128 and 256; which of them here: (ours)
    c.model.time_embedding = False  # D(y_t, x^c) as written
    c.loss.diffusion = c.loss.coarse = 1.0

    # HRNet's optimizer (ours): Adam, no warm-up, no clipping, no weight decay, 210 epochs of 128.
    c.optim.update(learning_rate=1e-3, schedule="step", decay_at=(170 / 210, 200 / 210), warmup_steps=0)
    c.optim.update(clip_norm=0.0, weight_decay=0.0, ema=0.0)
    c.train.update(batch_size=128, steps=245_787)

    c.sampler.update_rule = "direct"  # y~_{t-1} = D(y~_t, x^c)
    c.sampler.start = "coarse"  # y~_T = conv(x^fea)
    c.sampler.t_start = 1000  # T; without effect here: `direct` from `coarse` without time embedding never reads t
    c.sampler.refresh = False  # masks from y~_T
    c.sampler.steps = (1, 2, 4)  # (ours)
    return c
