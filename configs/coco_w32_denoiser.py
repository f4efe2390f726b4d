"""COCO 2017, the denoiser alone on a published HRNet-W32, 256 x 192. Not yet trained.

HRNet and its coarse branch come from the pose model of 74.4 AP (HRNet's paper: val2017, 56.4-AP boxes, flip test) and
stay bit for bit, so the `coarse` row of the evaluation is that model, by its own crop, codec and flip shift. The
denoiser learns on its features and heatmaps. A step makes no backward pass through HRNet: .39 of the full step's time
on a CPU; on a v5e chip a third of its traffic and a fifth of its memory, by the compiler (docs/pretrained.md). What the
denoiser adds to these weights is not known. On a tiny network it gained 2.2 AP on Leeds Sports
(docs/appendix/ablations.md). 15 epochs, rate and schedule are (ours), chosen for a short run.

  pip install -e ".[hub]"
  python train.py --config=configs/coco_w32_denoiser.py --workdir=DIR --config.data.root=COCO

The weights are downloaded once, 115 MB; --config.model.pretrained=FILE takes a file: official HRNet's or mmpose's.
"""

from configs import coco_w32_256x192


def get_config():
    """Returns the recipe; dpose_jax/recipe.py has every field."""
    c = coco_w32_256x192.get_config()
    c.crop.warp = c.codec.name = "rounded"
    c.codec.update(refine="quarter", label_margin=3.0)
    c.model.pretrained = "hrnet_w32"
    c.loss.coarse = 0.0
    c.optim.update(backbone_rate=0.0, schedule="cosine", learning_rate=1e-3)
    c.train.steps = 17_556  # 15 epochs of 149,813 persons
    return c
