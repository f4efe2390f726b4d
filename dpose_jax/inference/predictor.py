"""`Predictor`: a trained model that takes images and gives poses."""

import collections
import hashlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.data import crop
from dpose_jax.data.crop import crop_spec
from dpose_jax.data.doubts import doubts
from dpose_jax.diffusion.sampler import UPDATES, SamplerSettings, noised_start, sampler_settings
from dpose_jax.evaluation.results import score_persons
from dpose_jax.inference.about import about_published, about_trained
from dpose_jax.inference.boxes import ONE_BOX, checked_boxes, seen_boxes
from dpose_jax.inference.images import ImageLike, load_image
from dpose_jax.inference.poses import Poses
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.pose_sampler import PoseSampler, to_image_pixels
from dpose_jax.models.weights.published import read_pose_model
from dpose_jax.pose import uncertainty
from dpose_jax.recipe import Recipe
from dpose_jax.runtime.shortage import named_shortage
from dpose_jax.typed_fields import fail
from dpose_jax.workdir import model_folder
from dpose_jax.workdir.compatibility import stored_recipe
from dpose_jax.workdir.once import facts_of, is_ours
from dpose_jax.workdir.stored_program import StoredProgram

BATCH_SIZES = (1, 4, 16, 64)


class Predictor:
    """A trained model: `predictor(image, boxes)` gives the poses of the persons in the boxes.

    Every batch has one of a few sizes, so that few programs are compiled: each at its first use, or all by `warm_up`.
    It runs on JAX's default device, and downloads nothing but a named model of `from_weights`.

    Attributes:
      recipe, variables: of the model; its `params` and `batch_stats`, on the device.
      sampler, model, joint_set: from crops to joints, its network and its joints.
      batch_sizes: the sizes that are compiled.
      about: which model it is, trained on what, in a line.
    """

    def __init__(
        self,
        recipe: Recipe,
        variables,
        *,
        steps: int | None = None,
        flip: bool | None = None,
        hypotheses: int = 1,
        noise_time: int = 300,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        about: str = "given as recipe and variables",
    ):
        """Checks everything and compiles nothing; ValueError if an argument is out of range.

        Args:
          steps: sampling steps; 0 is the coarse branch; by default the fewest of `sampler.steps`.
          flip: average with the mirrored crop (twice the work); by default `eval.flip`.
          hypotheses: K samples a person from independently noised starts. With K > 1 a `coarse` start, which has no
            noise, becomes `coarse_noised`.
          noise_time: its t_start then, in 1..T (ours).
        """
        if not isinstance(hypotheses, int) or hypotheses < 1:
            fail("hypotheses", hypotheses, "be an integer, at least 1")
        if hypotheses > 1 and (steps == 0 or recipe.plain):
            fail("hypotheses", hypotheses, "be 1 for the coarse branch (steps=0, or a plain HRNet), which has no noise")
        listed = isinstance(batch_sizes, Sequence) and len(batch_sizes) > 0
        if not listed or not all(isinstance(size, int) and size > 0 for size in batch_sizes):
            fail("batch_sizes", batch_sizes, f"be one or more positive integers, as {BATCH_SIZES}")
        self.recipe, self.variables, self.batch_sizes = recipe, jax.device_put(variables), tuple(sorted(batch_sizes))
        self.about, self.model = about, build_model(recipe)
        self.joint_set = self.model.joint_set
        settings: tuple[SamplerSettings, ...] = ()
        if recipe.plain and steps:
            raise ValueError(f"steps={steps}: a plain HRNet (loss.diffusion=0) has no denoiser; 0 is its only result")
        if steps != 0 and not recipe.plain:
            wanted = min(recipe.sampler.steps) if steps is None else steps
            try:
                settings = sampler_settings(recipe.override({"sampler.steps": (wanted,)}).sampler)
            except ValueError as error:  # which names the field of a recipe, and knows no 0
                most = f"sampler.t_start={recipe.sampler.t_start}"
                raise ValueError(f"steps={steps!r}: must be an integer, 0 (the coarse branch) to {most}") from error
            if hypotheses > 1 and settings[0].start == "coarse":
                settings = (noised_start(settings[0], noise_time, recipe.diffusion.timesteps),)
        flip = recipe.eval.flip if flip is None else flip
        schedule, seed = build_schedule(recipe.diffusion), recipe.sampler.seed
        self.sampler = PoseSampler(self.model, schedule, settings, flip, seed, hypotheses)

        def trace(*inputs):
            trajectory, joints, _ = self.sampler.trace(*inputs)
            return {"trajectory": jnp.swapaxes(trajectory, 0, 1), "joints": jnp.swapaxes(joints, 0, 1)}

        self._spec, self._trace = crop_spec(recipe), jax.jit(trace)
        backbone, ours = facts_of(self.model.backbone), is_ours(*UPDATES[recipe.sampler.update_rule])
        facts = repr((recipe, recipe.joints, settings, flip, hypotheses))
        self._run = StoredProgram(self.sampler.poses, "poses", facts if ours else None, backbone)

    @classmethod
    def from_workdir(cls, path: str, **options) -> "Predictor":
        """The newest checkpoint of a training run, with the parameters of an evaluation; FileNotFoundError without."""
        # Here, because a model file needs no orbax.
        from dpose_jax.workdir.checkpoints import read_variables

        recipe, restored = stored_recipe(path), read_variables(path)
        return cls(recipe, restored.variables, about=about_trained(path, recipe, {"step": restored.step}), **options)

    @classmethod
    def from_file(cls, path: str | None = None, **options) -> "Predictor":
        """A model folder that `dpose_jax.export --weights` wrote, else the bundled one; see `model_folder.load`."""
        recipe, variables, metadata = model_folder.load(path or model_folder.SHIPPED)
        about = about_trained(path or "the bundled model", recipe, metadata["trained"])
        return cls(recipe, variables, about=about, **options)

    @classmethod
    def from_weights(
        cls, source: str, *, joint_set: str | None = None, input_size: tuple[int, int] | None = None, **options
    ) -> "Predictor":
        """A published HRNet pose model as plain HRNet; see `published.read_pose_model`.

        `source` is a name such as `hrnet_w32`, downloaded once, or a file of official HRNet or mmpose.
        """
        recipe, variables = read_pose_model(source, joint_set=joint_set, input_size=input_size)
        return cls(recipe, variables, about=about_published(source, recipe), **options)

    @classmethod
    def load(cls, workdir: str | None = None, model: str | None = None, **options) -> "Predictor":
        """`from_workdir` or `from_file`, whichever is given, else the bundled model; ValueError with both."""
        if workdir is not None and model is not None:
            raise ValueError(f"give one of --workdir={workdir} and --model={model}, or neither for the bundled model")
        return cls.from_file(model, **options) if workdir is None else cls.from_workdir(workdir, **options)

    def fingerprint(self) -> str:
        """SHA-256 of all that decides what it predicts, in hexadecimal: recipe, sampling and parameters."""
        sampling = self.sampler.settings, self.sampler.flip, self.sampler.hypotheses
        digest = hashlib.sha256(repr((self.recipe, sampling)).encode())
        for leaf in jax.tree.leaves(self.variables):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def warm_up(self) -> None:
        """Compiles every batch size now, so that no later call waits for the compiler."""
        for size in self.batch_sizes:
            blank = np.zeros((size, *self._spec.input_size, 3), np.uint8), np.zeros(size, np.int32)
            jax.block_until_ready(self._run(self.variables, *blank))

    def __call__(self, image, boxes=None) -> Any:
        """The `Poses` of an image as `load_image` takes it, or a list of them for a list, whose persons share batches.

        Boxes are (N, 4) x, y, width, height in pixels of the upright image, or (N, 5) with a score in [0, 1]; None
        takes the whole image for one person. For a list of images they are None or a list of these. Boxes that are
        partly outside are clipped. A person's result depends on its image, box and place in `boxes` alone. Raises
        ValueError or OSError, which names it, for an image that cannot be read or a box that is not finite, empty or
        outside. Warns of boxes in 0..1, or that look like corners.
        """
        if not isinstance(image, list | tuple):
            return self._of_images([image], [boxes], ONE_BOX)[0]
        hint = "a list of images needs a list of boxes for each, [[x, y, width, height]]"
        boxes = [None] * len(image) if boxes is None else boxes
        count = len(boxes) if hasattr(boxes, "__len__") else boxes
        if count != len(image):
            raise ValueError(f"boxes: {hint}: {len(image)} images, got {count!r}")
        return self._of_images(image, boxes, hint)

    def _of_images(self, images: Sequence[ImageLike], boxes: Sequence[Any], hint: str) -> list[Poses]:
        places, seen = list[tuple[np.ndarray, np.ndarray]](), collections.Counter[str]()

        def persons() -> Iterator[tuple[np.ndarray, int]]:
            for one, its in zip(images, boxes, strict=True):
                clipped, to_image, crops = self._crops(one, its, hint, seen)
                places.append((clipped, to_image))
                yield from zip(crops, itertools.count())

        found, poses, end = self._in_batches(self._run, persons()), [], 0
        for clipped, to_image in places:
            start, end = end, end + len(clipped)
            poses.append(self._poses({key: value[start:end] for key, value in found.items()}, clipped, to_image))
        for doubt in doubts(seen, 0, 0, "stored"):
            warnings.warn(f"boxes: {doubt}", stacklevel=3)
        return poses

    def trace(self, image: ImageLike, boxes=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The denoising of each person, for `draw.denoising_strip`; no flip test, one hypothesis.

        Returns crops (N, Hx, Wx, 3) uint8, trajectory (K + 1, N, H, W, J), joints (K + 1, N, J, 2) in crop pixels.
        ValueError for the coarse branch, which denoises nothing, or without a box; else as `__call__`.
        """
        if not self.sampler.settings:
            raise ValueError("steps=0: the coarse branch has no denoising to show")
        crops = list(self._crops(image, boxes)[2])
        if not crops:
            raise ValueError("boxes: at least one is needed to show a denoising")
        found = self._in_batches(self._trace, zip(crops, itertools.count()))
        return np.stack(crops), found["trajectory"].swapaxes(0, 1), found["joints"].swapaxes(0, 1)

    def _crops(
        self, image: ImageLike, boxes, hint: str = ONE_BOX, seen: collections.Counter[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray, Iterator[np.ndarray]]:
        """The clipped boxes (N, 5) of an image, the maps (N, 2, 3) from crop to image pixels, and the crops.

        Adds the image's `seen_boxes` to `seen`, if given.
        """
        pixels = load_image(image)
        boxes = [[0, 0, pixels.shape[1], pixels.shape[0]]] if boxes is None else boxes
        clipped, problems = checked_boxes(boxes, pixels.shape[:2], hint)
        for problem in filter(None, problems):
            raise ValueError(problem)
        if seen is not None:
            seen.update(seen_boxes(np.asarray(boxes, np.float64), pixels.shape[1::-1]))
        views = [crop.padded_view(box[:4], self._spec) for box in clipped]
        to_image = [crop.invert(crop.view_matrix(view, self._spec)) for view in views]
        crops = (crop.warp_image(pixels, view, self._spec) for view in views)
        return clipped, np.array(to_image).reshape(-1, 2, 3), crops

    def _in_batches(self, run: Any, persons: Iterable[tuple[np.ndarray, int]]) -> dict[str, np.ndarray]:
        """(crop, ID) of every person -> the arrays that `run` gives, one row a person."""
        pending, parts, persons = collections.deque[tuple[int, Any]](), list[dict[str, np.ndarray]](), iter(persons)

        def fetch() -> None:
            rows, out = pending.popleft()
            parts.append({key: value[:rows] for key, value in jax.device_get(out).items()})

        elsewhere = "" if jax.default_backend() == "cpu" else ", or JAX_PLATFORMS=cpu"
        with named_shortage(f"use smaller batch_sizes than {self.batch_sizes}{elsewhere}"):
            # A largest batch at a time, and two on their way: each holds a network's intermediate values.
            while chunk := list(itertools.islice(persons, self.batch_sizes[-1])):
                for start, rows, size in split_batches(len(chunk), self.batch_sizes):
                    blank = np.zeros_like(chunk[0][0]), 0
                    crops, ids = zip(*chunk[start : start + rows], *[blank] * (size - rows), strict=True)
                    pending.append((rows, run(self.variables, np.stack(crops), np.array(ids, np.int32))))
                    if len(pending) > 2:
                        fetch()
            while pending:
                fetch()
        if not parts:
            nobody = np.zeros((1, *self._spec.input_size, 3), np.uint8)
            shapes = run.eval_shape(self.variables, nobody, np.zeros(1, np.int32))
            return {key: np.zeros((0, *shape.shape[1:]), shape.dtype) for key, shape in shapes.items()}
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _poses(self, found: dict[str, np.ndarray], boxes: np.ndarray, to_image: np.ndarray) -> Poses:
        hypotheses = found.get("hypotheses")
        if hypotheses is not None:
            hypotheses = np.stack([to_image_pixels(one, to_image) for one in hypotheses.swapaxes(0, 1)], axis=1)
        return Poses(
            keypoints=to_image_pixels(found["keypoints"], to_image),
            keypoint_scores=found["scores"],
            scores=score_persons(found["scores"], boxes[:, 4], self.recipe.eval.min_joint_score),
            covariances=uncertainty.transform_covariance(found["covariances"], to_image[:, :, :2]),
            boxes=boxes[:, :4],
            hypotheses=hypotheses,
            joint_set=self.joint_set,
        )


def split_batches(count: int, sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """`count` rows as batches (first row, rows, size), at least half full unless of the smallest size."""
    sizes, batches, start = sorted(sizes), [], 0
    while (left := count - start) > 0:
        half_full = [size for size in sizes if size <= 2 * left] or [sizes[0]]
        size = min((size for size in half_full if size >= left), default=half_full[-1])
        batches.append((start, min(left, size), size))
        start += size
    return batches
