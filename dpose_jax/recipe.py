"""The recipe of a run: every field with its default, its unit and its range. Frozen and typed.

The defaults are HRNet's top-down recipe (Sun et al., CVPR 2019) around DiffusionPose (arXiv 2306.17074), for data in
COCO's format, where a comment names no other source. Fields marked (ours) are not given in the paper. Files of configs/
and `--config.x=y` use the same names. Sizes are (height, width) in pixels; probabilities and shares lie in [0, 1].
"""

from ml_collections import ConfigDict, config_dict

from dpose_jax.pose.joint_sets import JointSet, get_joint_set
from dpose_jax.typed_fields import (
    Section,
    at_least,
    below_one,
    between,
    choice,
    fail,
    kinds,
    positive,
    random_seed,
    share,
)

LARGEST_SIDE = 4096  # of a crop and of a rendered image, px (ours)
SOURCES = "folder", "full", "crops", "synthetic", "rendered"


class Synthetic(Section, prefix="data.synthetic."):
    """Drawn people: `data.source` "synthetic"."""

    train_images: int = at_least(1, 8192)
    val_images: int = at_least(1, 256)
    difficulty: float = share(0.5)  # 0: one whole person, plain ground; 1: crowds and clutter
    seed: int = random_seed()


class Rendered(Section, prefix="data.rendered."):
    """Rendered 3-D people: `data.source` "rendered", which needs the extra [render]."""

    train_images: int = at_least(1, 100_000)
    val_images: int = at_least(1, 256)
    difficulty: float = share(0.6)  # 0: one whole person; 1: crowds, cut people, things in front, faults of the camera
    seed: int = random_seed()
    size: tuple[int, int] = (288, 256)  # of the images
    poses: str | None = None  # a COCO annotation file whose poses the people take; none: sampled poses
    backgrounds: str | None = None  # a folder of pictures; none: invented backgrounds

    def check(self) -> None:
        if not 64 <= min(self.size) <= max(self.size) <= LARGEST_SIDE:
            fail("data.rendered.size", self.size, f"be (height, width) of 64 to {LARGEST_SIDE} px each")
        for name in ("train_images", "val_images"):  # ids of both splits fit int32
            if getattr(self, name) >= 2**24:
                fail(f"data.rendered.{name}", getattr(self, name), "lie in [1, 2**24)")


class Data(Section, prefix="data."):
    """Where persons come from."""

    # full, crops: records of dpose_jax.data.build
    source: str = choice(*SOURCES)
    # Sources to train on instead, and the share of each: ("folder", "rendered") and (.6, .4). `source` is evaluated.
    mix: tuple[str, ...] = ()
    mix_shares: tuple[float, ...] = ()
    set: str = "coco"  # the folder under $DPOSE_DATA when root is not given
    root: str | None = None  # the folder of one data set
    train_annotations: str = "annotations/person_keypoints_train2017.json"
    train_images: str = "train2017"
    val_annotations: str = "annotations/person_keypoints_val2017.json"
    val_images: str = "val2017"
    val_detections: str | None = None  # boxes of a detector, under root
    category: str | None = None  # the persons', by name or id; by default the only one with keypoints
    orientation: str = choice("stored", "upright")  # what annotations refer to: pixels as stored, or turned by EXIF
    use_area: bool = True  # OKS scale: the annotation's area, or 0.53 w h of its box
    max_bad_share: float = share(0.01)  # of records that may be unreadable before the run stops
    workers: int = between(0, 1024, 2)  # Grain worker processes; 0 reads in the main process
    synthetic: Synthetic = Synthetic()
    rendered: Rendered = Rendered()

    def check(self) -> None:
        if not set(self.mix) <= set(SOURCES) or len(set(self.mix)) < len(self.mix):
            fail("data.mix", self.mix, f"be different ones of {SOURCES}")
        if len(self.mix) != len(self.mix_shares) or not all(0 < each <= 1 for each in self.mix_shares):
            fail("data.mix_shares", self.mix_shares, f"be one share in (0, 1] for each of data.mix={self.mix}")

    def annotations(self, split: str) -> str:
        """The annotation file of split `train` or `val`, under root."""
        return {"train": self.train_annotations, "val": self.val_annotations}[split]

    def images(self, split: str) -> str:
        """The image folder of split `train` or `val`, under root."""
        return {"train": self.train_images, "val": self.val_images}[split]


class Crop(Section, prefix="crop."):
    """How a box becomes a crop."""

    padding: float = positive(1.25)  # of the box, around its centre
    warp: str = choice("unbiased", "rounded")  # unbiased (UDP, arXiv 1911.07524) or rounded (HRNet) (ours)


class Augment(Section, prefix="augment."):
    """The random part of a training crop."""

    flip: float = share(0.5)
    scale: float = below_one(0.35)  # the crop's size is multiplied by clip(1 + scale N(0, 1), 1 - scale, 1 + scale)
    rotation: float = at_least(0, 45.0)  # degrees: clip(rotation N(0, 1), -2 rotation, 2 rotation)
    rotation_prob: float = share(0.6)
    half_body: float = share(0.3)
    half_body_min_joints: int = at_least(0, 8)  # applied when more joints than this are labelled
    half_body_upper: float = share(0.7)  # half bodies meant to be the upper half; HRNet's code makes it .69
    shift: float = at_least(0, 0.0)  # of the centre, uniform, in units of the box side (ours)
    color: float = below_one(0.0)  # brightness, contrast and saturation: each times a factor in 1 +- color (ours)
    # The probability, each, of low resolution, blur, noise, JPEG, and a hidden rectangle (ours).
    camera: float = share(0.0)


class Codec(Section, prefix="codec."):
    """How joints become heatmaps and heatmaps joints: what the paper does not say."""

    name: str = choice("unbiased", "rounded")  # unbiased (sub-pixel centres) or rounded (HRNet) (ours)
    refine: str = choice("dark", "quarter", "none")  # (ours)
    sigma: float = positive(2.0)  # of the Gaussians, heatmap px (ours)
    blur: int = between(1, 255, 11)  # DARK's smoothing kernel, heatmap px, odd; 1 turns it off (ours)
    # How far off the crop a joint may lie and keep its label, in sigmas: 3 in HRNet's code (ours).
    label_margin: float = at_least(0, 0.0)

    def check(self) -> None:
        if self.blur % 2 == 0:
            fail("codec.blur", self.blur, "be odd")


class Diffusion(Section, prefix="diffusion."):
    """The forward process, and what the denoiser is trained on."""

    timesteps: int = between(1, 100_000, 1000)  # T (ours, after DDPM)
    schedule: str = choice("cosine", "linear")  # (ours, after improved DDPM)
    zeta: float = positive(2.0)  # signal scale (ours; the sweep is 1, 2, 5, 10)
    t_range: tuple[int, int] = (1, 300)  # t is uniform over this closed range in training (ours; the paper: 1 to T)
    own_share: float = share(0.5)  # of examples, fed the model's own coarse heatmaps (ours; the paper: 0)
    every: int = at_least(1, 1)  # D is trained on each `every`-th example of a batch, the coarse branch on all (ours)

    def check(self) -> None:
        low, high = self.t_range
        if not 1 <= low <= high <= self.timesteps:
            fail("diffusion.t_range", self.t_range, f"be 1 <= low <= high <= T = {self.timesteps}")


class Masks(Section, prefix="masks."):
    """M^kps and M^ske, and how wide they are: pixels at 64 x 48, which scale with the map."""

    keypoints: bool = True  # M^kps; off: a mask of ones
    skeleton: bool = True  # M^ske; off: a mask of ones
    radius: float = positive(6.0)  # delta_kps: disc radius (ours)
    half_width: float = positive(3.0)  # delta_ske: limb half-width (ours)
    softness: float = at_least(0, 0.0)  # 0: binary; else the width of a sigmoid edge (ours)


class Model(Section, prefix="model."):
    """The network."""

    backbone: str = "w32"  # tiny, w18_small, w32, w48, or what else the package models names
    width: int | None = between(1, 65_536, None)  # replaces the backbone's width
    pretrained: str = "imagenet"  # none, imagenet, hf:OWNER/REPO, a file or folder: docs/pretrained.md
    head_dim: tuple[int, int] = (16, 32)  # SC-CA head width range; heads = channel groups (ours)
    window: int = between(1, 256, 8)  # SC-CA window, px at stride 4 (ours)
    spatial_attention: bool = True  # A_s
    channel_attention: bool = True  # A_c
    channel_scale: str = choice("width", "positions")  # of its affinity: d^-1/2 (ours, after DaViT) or N^-1/2 (ours)
    # SGDD: unet, the paper's kind; or light (ours): no residual block at full size, skips added.
    decoder: str = choice("unet", "light")
    decoder_channels: int = between(1, 65_536, 64)  # C
    decoder_blocks: int = between(1, 64, 2)  # residual blocks a level (ours)
    # From stride 4 to a smaller one: bilinear resizes x^c and the coarse heatmaps (ours). With subpixel all stays at
    # stride 4, and both heads give the 4/s x 4/s heatmap pixels of a position as channels (ours).
    upsampling: str = choice("bilinear", "subpixel")
    time_embedding: bool = False  # D(y_t, x^c, t) instead of D(y_t, x^c) (ours)
    detach_coarse: bool = False  # the coarse loss does not reach the backbone (ablation)
    batch_norm: str = choice("train", "frozen")  # frozen: running statistics, scale and bias stay as they are
    dtype: str = choice("float32", "bfloat16")  # of compute; parameters and statistics stay float32
    remat: str = choice("none", "blocks")  # blocks are computed again in the backward pass, to save memory
    packed: bool = False  # HRNet keeps pixels of a row as channels, to fill a TPU's lanes; the same network (ours)

    def check(self) -> None:
        if self.time_embedding and self.decoder_channels % 2:
            fail("model.decoder_channels", self.decoder_channels, "be even with model.time_embedding")
        if not 1 <= self.head_dim[0] <= self.head_dim[1]:
            fail("model.head_dim", self.head_dim, "be 1 <= low <= high")


class Optim(Section, prefix="optim."):
    """The optimizer, Adam."""

    learning_rate: float = positive(1e-3)
    base_batch: int = at_least(0, 128)  # learning_rate is for this train.batch_size and linear in it; 0: for any
    schedule: str = choice("step", "cosine")
    decay_at: tuple[float, ...] = (170 / 210, 200 / 210)  # step: x 0.1 at these shares of the run
    warmup_steps: int = at_least(0, 500)  # (ours, after mmpose)
    clip_norm: float = at_least(0, 1.0)  # of the global gradient; 0 turns it off (ours)
    weight_decay: float = at_least(0, 0.0)  # decoupled, on kernels
    freeze_backbone_steps: int = at_least(0, 0)  # first steps that leave HRNet and its statistics as they are (ours)
    # HRNet's learning rate, times learning_rate; 0 keeps it and its statistics, without a backward pass (ours). With
    # loss.coarse=0 the coarse branch then stays too, and the denoiser alone is trained.
    backbone_rate: float = share(1.0)
    ema: float = below_one(0.0)  # decay of the moving averages of parameters and BatchNorm statistics; 0: none

    def check(self) -> None:
        if not all(0 < each < 1 for each in self.decay_at):
            fail("optim.decay_at", self.decay_at, "be shares of the run, each in (0, 1)")


class Loss(Section, prefix="loss."):
    """Weights of the two terms."""

    diffusion: float = at_least(0, 1.0)  # 0 trains a plain HRNet, whose result is `coarse`
    coarse: float = at_least(0, 1.0)


class Train(Section, prefix="train."):
    """The training loop."""

    batch_size: int = at_least(1, 128)  # of all devices together
    accumulate: int = at_least(1, 1)  # parts of the batch that are worked off one after the other, to save memory
    fsdp: bool = False  # split parameters and optimizer state over the devices instead of copying them
    steps: int = at_least(1, 245_787)  # 210 epochs of 149,813 persons
    log_every: int = at_least(1, 50)
    checkpoint_every: int = at_least(1, 2_000)
    keep_checkpoints: int = at_least(1, 2)  # the newest; the best by AP stays too where there is an evaluation
    evaluate_every: int = at_least(0, 0)  # steps between evaluations on eval.split, each with a checkpoint; 0: none


class Sampler(Section, prefix="sampler."):
    """Reverse diffusion."""

    steps: tuple[int, ...] = (1, 2, 4)  # K, decoder passes: every entry is evaluated
    update_rule: str = choice("direct", "ddim")  # direct: the paper's equation; ddim (ours): DDIM on coordinates
    start: str = choice("coarse", "coarse_noised", "random")  # coarse: the paper's
    t_start: int = at_least(1, 300)  # of ddim and the noised starts; coarse with direct reads no time (ours; paper: T)
    eta: float = share(0.0)  # of DDIM (ours)
    refresh: bool = False  # draw the masks anew at every step (ours)
    mirrored: bool = True  # flip test: denoise the mirrored crop too; False: only its start is averaged in (ours)
    seed: int = random_seed()

    def check(self) -> None:
        if not self.steps or len(set(self.steps)) != len(self.steps) or min(self.steps) < 1:
            fail("sampler.steps", self.steps, "be one or more distinct numbers, each at least 1")
        # Two times that round to the same would make the DDIM step divide by zero.
        if max(self.steps) > self.t_start:
            fail("sampler.steps", self.steps, f"not exceed sampler.t_start={self.t_start}")


class Eval(Section, prefix="eval."):
    """The evaluation."""

    split: str = choice("val", "train")
    checkpoint: str = choice("last", "best")  # best: the highest AP of the evaluations during training
    batch_size: int = at_least(1, 64)
    flip: bool = True
    ema: bool = True  # evaluate the moving averages when there are any
    boxes: str = choice("gt", "detections")
    min_box_score: float = 0.0  # detections below this are left out
    min_joint_score: float = 0.2  # joints above it make the person score
    nms: float = share(0.9)  # OKS threshold of the suppression; 1 turns it off
    soft_nms: bool = False  # decay the scores of duplicates instead of dropping them
    engine: str = choice("pycocotools", "hotcoco")  # of COCO's metrics; hotcoco: the same, some thirty times as fast
    pictures: int = at_least(0, 24)  # persons drawn beside ground truth

    def check(self) -> None:
        if not self.nms:
            fail("eval.nms", self.nms, "lie in (0, 1]; 1 turns it off")


class Recipe(Section):
    """All of it. Raises ValueError, naming the field, if it has a wrong type, is out of range or contradicts others."""

    seed: int = random_seed()
    profile_steps: int = at_least(0, 0)  # steps of the run to trace, into WORKDIR/profile; 0: none
    joint_set: str | JointSet = "coco"  # coco, crowdpose, aic, or the path of a JSON file
    input_size: tuple[int, int] = (256, 192)  # of the crop; multiples of 32
    stride: int = choice(4, 1, 2, 8)  # s: heatmaps are input_size / s
    data: Data = Data()
    crop: Crop = Crop()
    augment: Augment = Augment()
    codec: Codec = Codec()
    diffusion: Diffusion = Diffusion()
    masks: Masks = Masks()
    model: Model = Model()
    optim: Optim = Optim()
    loss: Loss = Loss()
    train: Train = Train()
    sampler: Sampler = Sampler()
    eval: Eval = Eval()

    def check(self) -> None:
        get_joint_set(self.joint_set)
        if any(not 1 <= side <= LARGEST_SIDE or side % 32 for side in self.input_size):
            rule = f"be (height, width), positive multiples of 32 each, at most {LARGEST_SIDE}"
            fail("input_size", self.input_size, rule)
        if self.model.upsampling == "subpixel" and self.stride > 4:
            fail("model.upsampling", "subpixel", f"be 'bilinear' with stride={self.stride}, which is above 4")
        if self.optim.warmup_steps >= self.train.steps:
            fail("optim.warmup_steps", self.optim.warmup_steps, f"lie in [0, train.steps={self.train.steps})")
        last, start = self.diffusion.timesteps, self.sampler.t_start
        if start > last:
            fail("sampler.t_start", start, f"not exceed T = {last}")
        if (self.sampler.start, self.sampler.update_rule) == ("random", "ddim") and start != last:
            fail("sampler.t_start", start, f"be T = {last} for ddim with sampler.start='random'")

    @property
    def joints(self) -> JointSet:
        """The joint set that `joint_set` names."""
        return get_joint_set(self.joint_set)

    @property
    def plain(self) -> bool:
        """Whether this is a plain HRNet, whose result is its coarse branch: no denoiser was trained."""
        return self.loss.diffusion == 0

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Recipe":
        """The recipe of a file of configs/ and its command line; raises ValueError as the class does."""
        return cls.read(config.to_dict())

    def to_config(self) -> ConfigDict:
        """The same fields for ml_collections: each keeps its type."""

        def convert(section: Section) -> ConfigDict:
            made = ConfigDict()
            for name, kind in kinds(type(section)).items():
                value = getattr(section, name)
                if value is None:
                    value = config_dict.placeholder(str if kind == str | None else int)
                made[name] = convert(value) if isinstance(value, Section) else value
            return made

        return convert(self)
