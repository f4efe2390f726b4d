"""A few hundred real COCO persons, learnt by heart: checks the whole path on real images on two CPU cores."""

from configs import base


def get_config():
    c = base.get_config()
    c.input_size = (128, 96)
    c.data.train_images = "images/train2017"
    c.data.val_images = "images/val2017"
    c.data.val_detections = "annotations/person_detections_val2017_centernet.json"
    c.data.workers = 1

    # No augmentation but the flip, which the flip test relies on: the aim is to overfit.
    c.augment.scale = 0.0
    c.augment.rotation_prob = 0.0
    c.augment.half_body = 0.0
    c.codec.sigma = 1.5
    c.codec.blur = 5

    c.diffusion.own_share = 0.5

    c.model.backbone = "tiny"
    c.model.decoder_channels = 32
    c.model.decoder_blocks = 1

    c.optim.learning_rate = 2e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 100

    c.train.batch_size = 32
    c.train.steps = 2500
    c.train.checkpoint_every = 500
    c.eval.min_box_score = 0.1
    return c
