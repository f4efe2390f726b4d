"""Leeds Sports Pose Extended, 14 joints in CrowdPose's order, from random weights on two CPU cores."""

from configs import base


def get_config():
    c = base.get_config()
    c.joint_set = "crowdpose"
    c.input_size = (128, 96)
    c.data.set = "lspet"
    c.data.train_annotations = "annotations/lspet_train_crowdpose.json"
    c.data.train_images = "images"
    c.data.val_annotations = "annotations/lspet_val_crowdpose.json"
    c.data.val_images = "images"
    c.data.use_area = False
    c.data.workers = 1

    c.augment.half_body = 0.0
    c.augment.rotation = 40.0
    c.augment.scale = 0.3
    c.codec.sigma = 1.5
    c.codec.blur = 5

    c.diffusion.own_share = 0.5

    c.model.backbone = "tiny"
    c.model.decoder_channels = 32
    c.model.decoder_blocks = 1

    c.optim.learning_rate = 2e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 100
    c.optim.weight_decay = 1e-4

    c.train.batch_size = 32
    c.train.steps = 4500
    c.train.checkpoint_every = 500
    return c
