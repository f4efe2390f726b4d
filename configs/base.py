"""Every field with its default. A recipe is a short delta on this file; it is not run by itself.

The defaults are HRNet's top-down recipe around DiffusionPose (arXiv 2306.17074) for one set in COCO
format. Fields marked (ours) are not given in the paper.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Returns the defaults. Sizes are (height, width) in pixels; probabilities in [0, 1]."""
    c = ConfigDict()
    c.seed = 0
    c.profile_steps = 0  # steps of the run to trace, into WORKDIR/profile; 0: none
    c.joint_set = "coco"  # coco, crowdpose, aic, or the path of a JSON file
    c.input_size = (256, 192)  # of the crop; divisible by 32 and by the stride
    c.stride = 4  # s: heatmaps are input_size / s; 1, 2, 4 or 8

    c.data = ConfigDict()
    c.data.source = "folder"  # folder; full or crops (records that dpose_jax.data.build wrote); synthetic
    c.data.set = "coco"  # the folder under $DPOSE_DATA when root is not given
    c.data.root = config_dict.placeholder(str)  # the folder of one data set
    c.data.train_annotations = "annotations/person_keypoints_train2017.json"
    c.data.train_images = "train2017"
    c.data.val_annotations = "annotations/person_keypoints_val2017.json"
    c.data.val_images = "val2017"
    c.data.val_detections = config_dict.placeholder(str)  # boxes of a detector, under root
    c.data.use_area = True  # OKS scale: the annotation's area, or 0.53 w h of its box
    c.data.max_bad_share = 0.01  # of records that may be unreadable before the run stops
    c.data.workers = 2  # Grain worker processes; 0 reads in the main process

    c.data.synthetic = ConfigDict()
    c.data.synthetic.train_images = 8192
    c.data.synthetic.val_images = 256
    c.data.synthetic.difficulty = 0.5  # 0: one whole person, plain ground; 1: crowds and clutter
    c.data.synthetic.seed = 0

    c.crop = ConfigDict()
    c.crop.padding = 1.25  # of the box, around its centre
    c.crop.warp = "unbiased"  # unbiased (UDP) or rounded (HRNet)

    c.augment = ConfigDict()
    c.augment.flip = 0.5
    c.augment.scale = 0.35  # scale factor clip(1 + scale N(0, 1), 1 - scale, 1 + scale)
    c.augment.rotation = 45.0  # degrees: clip(rotation N(0, 1), -2 rotation, 2 rotation)
    c.augment.rotation_prob = 0.6
    c.augment.half_body = 0.3
    c.augment.half_body_min_joints = 8  # applied when more joints than this are labelled
    c.augment.half_body_upper = 0.7  # share of half bodies meant to be the upper half; HRNet's code makes it .69
    c.augment.shift = 0.0  # uniform, in units of the box side
    c.augment.color = 0.0  # jitter of brightness, contrast and saturation, +- this factor

    c.codec = ConfigDict()
    c.codec.name = "unbiased"  # unbiased (sub-pixel centres) or rounded (HRNet)
    c.codec.refine = "dark"  # dark, quarter or none
    c.codec.sigma = 2.0  # of the Gaussians, heatmap px
    c.codec.blur = 11  # DARK's smoothing kernel, heatmap px, odd; 1 turns it off

    c.diffusion = ConfigDict()
    c.diffusion.timesteps = 1000  # T
    c.diffusion.schedule = "cosine"  # cosine or linear
    c.diffusion.zeta = 2.0  # signal scale (ours; the sweep is 1, 2, 5, 10)
    c.diffusion.t_range = (1, 300)  # t is uniform over this closed range in training (ours; the paper: 1 to T)
    c.diffusion.own_share = 0.5  # share of examples fed the model's own coarse heatmaps (ours; the paper: 0)
    c.diffusion.unroll_share = 0.0  # share fed what the denoiser made of its input, as in a second step (ours)

    c.masks = ConfigDict()
    c.masks.keypoints = True  # M^kps; off: a mask of ones
    c.masks.skeleton = True  # M^ske; off: a mask of ones
    c.masks.radius = 6.0  # delta_kps: disc radius, px at 64 x 48, scales with the map (ours)
    c.masks.half_width = 3.0  # delta_ske: limb half-width, px at 64 x 48 (ours)
    c.masks.softness = 0.0  # 0: binary; else the width of a sigmoid edge, px at 64 x 48 (ours)

    c.model = ConfigDict()
    c.model.backbone = "w32"  # tiny, w18_small, w32 or w48
    c.model.width = config_dict.placeholder(int)  # replaces the preset's width
    c.model.pretrained = "imagenet"  # none, imagenet, hf:OWNER/REPO, a file or folder: docs/pretrained.md
    c.model.head_dim = (16, 32)  # SC-CA head width range; heads = channel groups (ours)
    c.model.window = 8  # SC-CA window, px at stride 4 (ours)
    c.model.spatial_attention = True  # A_s
    c.model.channel_attention = True  # A_c
    c.model.channel_scale = "width"  # of its affinity: width, d^-1/2, or positions, N^-1/2 (ours)
    c.model.decoder_channels = 64  # C
    c.model.decoder_blocks = 2  # residual blocks a level (ours)
    c.model.time_embedding = False  # D(y_t, x^c, t) instead of D(y_t, x^c) (ours)
    c.model.residual = False  # D predicts the change of its input heatmaps (ours)
    c.model.detach_coarse = False  # the coarse loss does not reach the backbone (ablation)
    c.model.batch_norm = "train"  # train, or frozen: running statistics, scale and bias stay as they are
    c.model.dtype = "float32"  # of compute, float32 or bfloat16; parameters and statistics stay float32
    c.model.remat = "none"  # none, or blocks: residual blocks are computed again in the backward pass, to save memory

    c.optim = ConfigDict()
    c.optim.learning_rate = 1e-3
    c.optim.base_batch = 128  # learning_rate is for this train.batch_size and linear in it; 0: for any
    c.optim.schedule = "step"  # step or cosine
    c.optim.decay_at = (170 / 210, 200 / 210)  # step: x 0.1 at these shares of the run
    c.optim.warmup_steps = 500
    c.optim.clip_norm = 1.0  # of the global gradient; 0 turns it off
    c.optim.weight_decay = 0.0  # decoupled, on kernels
    c.optim.denoiser_from = 0.0  # share of the run in which HRNet and its coarse branch learn alone at first (ours)
    c.optim.freeze_backbone_steps = 0  # first steps that leave HRNet and its statistics as they are (ours)
    c.optim.ema = 0.0  # decay of the moving averages of parameters and BatchNorm statistics; 0 turns them off

    c.loss = ConfigDict()
    c.loss.diffusion = 1.0  # 0 trains a plain HRNet, whose result is `coarse`
    c.loss.coarse = 1.0

    c.train = ConfigDict()
    c.train.batch_size = 128  # of all devices together
    c.train.accumulate = 1  # parts of the batch that are worked off one after the other, to save memory
    c.train.fsdp = False  # split parameters and optimizer state over the devices instead of copying them
    c.train.steps = 245_787  # 210 epochs of 149,813 persons
    c.train.log_every = 50
    c.train.checkpoint_every = 2_000
    c.train.keep_checkpoints = 2  # the newest; the best by AP stays too where there is an evaluation
    c.train.evaluate_every = 0  # steps between evaluations on eval.split, each with a checkpoint; 0: none

    c.sampler = ConfigDict()
    c.sampler.steps = (1, 2, 4)  # K: every entry is evaluated
    c.sampler.update_rule = "direct"  # direct (the paper) or ddim (ours)
    c.sampler.start = "coarse"  # coarse (the paper), coarse_noised or random
    c.sampler.t_start = 300  # of ddim and the noised starts; coarse with direct has none (ours; the paper: T)
    c.sampler.eta = 0.0  # of DDIM, in [0, 1] (ours)
    c.sampler.refresh = False  # draw the masks anew at every step (ours)
    c.sampler.early_stop = 0.0  # heatmap px: a person whose joints move less in a step is done; 0: off (ours)
    c.sampler.mirrored = True  # flip test: denoise the mirrored crop too; False: only its start is averaged in (ours)
    c.sampler.seed = 0

    c.eval = ConfigDict()
    c.eval.split = "val"  # val or train
    c.eval.checkpoint = "last"  # last, or best: the highest AP of the evaluations during training
    c.eval.batch_size = 64
    c.eval.flip = True
    c.eval.ema = True  # evaluate the moving averages when there are any
    c.eval.boxes = "gt"  # gt or detections
    c.eval.min_box_score = 0.0  # detections below this are left out
    c.eval.min_joint_score = 0.2  # joints above it make the person score
    c.eval.nms = 0.9  # OKS threshold of the suppression; 1 turns it off
    c.eval.soft_nms = False  # decay the scores of duplicates instead of dropping them
    c.eval.engine = "pycocotools"  # of COCO's metrics; hotcoco gives the same numbers some thirty times as fast
    c.eval.pictures = 24  # persons drawn beside ground truth
    return c
