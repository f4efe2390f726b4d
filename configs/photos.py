"""Photos, rendered and drawn people in one training: the bundled model, which meets photos.

Measured with one step on 603 persons of COCO val2017: AP 13.8, PCK@0.1 62.3 (coarse branch 11.4, 60.3). Annotated
boxes, flip test, seed 0. On 403 drawn persons: AP 64.6. About 150 minutes on two shared CPU cores, after those of
synthetic_full.py.

It was trained in six parts. Each starts from the one before, first from drawn people alone; HRNet comes first, then
the denoiser on it, then both. COCO is a folder with 125 photos of train2017 (360 persons), val2017, and annotations;
the poses of the rendered people are those of all of train2017. Rendering needs the extra [render].

  UNET="--config.stride=4 --config.model.upsampling=bilinear --config.model.decoder=unet
      --config.model.spatial_attention=True --config.model.channel_attention=True"
  python train.py --config=configs/synthetic_full.py --workdir=runs/drawn $UNET
  TRAIN="python train.py --config=configs/photos.py --config.data.root=COCO
      --config.data.rendered.poses=COCO/annotations/person_keypoints_train2017.json
      --config.data.rendered.backgrounds=COCO/train2017"
  OLD="--config.data.mix_shares=(.72,.08,.2) --config.data.synthetic.train_images=4000 --config.optim.ema=.99
      --config.optim.warmup_steps=20"
  HRNET="$OLD --config.augment.rotation_prob=.6 --config.loss.diffusion=0"
  $TRAIN $HRNET --workdir=runs/1 --config.model.pretrained=runs/drawn --config.train.steps=1600 \\
      "--config.data.mix_shares=(.45,.35,.2)" --config.augment.camera=.25 --config.optim.ema=.998 \\
      --config.optim.warmup_steps=100 --config.data.synthetic.train_images=20000
  $TRAIN $HRNET --workdir=runs/2 --config.model.pretrained=runs/1 --config.train.steps=600 \\
      --config.optim.learning_rate=1.5e-3
  $TRAIN $OLD --workdir=runs/3 --config.model.pretrained=runs/2 --config.augment.rotation_prob=.6 \\
      --config.optim.backbone_rate=0 --config.loss.coarse=0 --config.train.steps=400 \\
      --config.optim.warmup_steps=100    # stopped after step 206
  $TRAIN $OLD --workdir=runs/4 --config.model.pretrained=runs/3 --config.train.steps=800
  $TRAIN --workdir=runs/photos --config.model.pretrained=runs/4
"""

from configs import tiny


def get_config():
    """Returns the recipe of the last part; dpose_jax/recipe.py has every field."""
    c = tiny.get_config()
    c.stride = 4  # the bundled model is a U-Net with SC-CA, older than the light denoiser
    c.model.update(upsampling="bilinear", decoder="unet", spatial_attention=True, channel_attention=True)
    c.data.update(source="folder", workers=2, mix=("folder", "rendered", "synthetic"), mix_shares=(0.52, 0.1, 0.38))
    c.data.synthetic.update(train_images=20_000, val_images=200, difficulty=0.4)
    c.data.rendered.train_images = 20_000
    c.augment.update(scale=0.35, shift=0.05, color=0.4, half_body=0.15, camera=0.1)
    c.augment.update(rotation=40.0, rotation_prob=0.4)
    c.optim.update(ema=0.998, warmup_steps=50)
    c.train.update(steps=2000, checkpoint_every=100, log_every=20)
    return c
