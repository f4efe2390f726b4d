"""Photos, rendered and drawn people in one training, under strong augmentation: for a small model that meets photos.

The start is a model of drawn people. HRNet is trained first, then the denoiser on it (docs/pretrained.md). Rendered
people need the extra [render]; COCO is the folder of COCO 2017, of which few images are enough.

  python train.py --config=configs/synthetic_full.py --workdir=runs/drawn
  DATA="--config.data.root=COCO --config.data.rendered.poses=COCO/annotations/person_keypoints_train2017.json
        --config.data.rendered.backgrounds=COCO/train2017"
  python train.py --config=configs/photos.py --workdir=runs/photos_hrnet $DATA \\
      --config.model.pretrained=runs/drawn --config.loss.diffusion=0
  python train.py --config=configs/photos.py --workdir=runs/photos $DATA --config.model.pretrained=runs/photos_hrnet \\
      --config.optim.backbone_rate=0 --config.loss.coarse=0 --config.train.steps=600
  python eval.py --workdir=runs/photos
"""

from configs import tiny


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = tiny.get_config()
    c.data.update(source="folder", workers=2, mix=("folder", "rendered", "synthetic"), mix_shares=(0.45, 0.35, 0.2))
    c.data.synthetic.update(train_images=20_000, val_images=200, difficulty=0.4)
    c.augment.update(rotation=40.0, scale=0.35, shift=0.05, color=0.4, half_body=0.15, camera=0.25)
    c.optim.ema = 0.998
    c.train.update(steps=2500, checkpoint_every=100, log_every=20)
    return c
