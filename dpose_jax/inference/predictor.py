"""`Predictor`: a trained model that takes images and gives poses."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.data import crop
from dpose_jax.data.loader import crop_spec
from dpose_jax.diffusion.sampler import SamplerSettings, noised_start, sampler_settings
from dpose_jax.evaluation.report import score_persons
from dpose_jax.inference.boxes import checked_boxes
from dpose_jax.inference.images import ImageLike, load_image
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.pose_sampler import PoseSampler, to_image_pixels
from dpose_jax.models.weights.published import read_pose_model
from dpose_jax.pose import uncertainty
from dpose_jax.pose.joint_sets import JointSet, Pair
from dpose_jax.recipe import Recipe
from dpose_jax.workdir import model_folder
from dpose_jax.workdir.compatibility import stored_recipe

BATCH_SIZES = (1, 4, 16, 64)


@dataclasses.dataclass(frozen=True)
class Poses:
    """The N persons of one image.

    Attributes:
      keypoints: (N, J, 2) float64, x and y in image pixels.
      keypoint_scores: (N, J) float32, heatmap peaks.
      scores: (N,) float64, box score x mean of the joint scores above `eval.min_joint_score`.
      covariances: (N, J, 2, 2) float64, image pixels squared, by the curvature of the heatmap's peak: it contains the
        sigma of the training targets, see `uncertainty.peak_covariance`.
      boxes: (N, 4) float64, x, y, width, height, clipped to the image.
      hypotheses: (N, K, J, 2) float64, image pixels, one sample each; None unless K > 1 was asked for.
      joint_set: names, limbs, flip pairs, OKS sigmas.
    """

    keypoints: np.ndarray
    keypoint_scores: np.ndarray
    scores: np.ndarray
    covariances: np.ndarray
    boxes: np.ndarray
    hypotheses: np.ndarray | None
    joint_set: JointSet

    def __len__(self) -> int:
        return len(self.keypoints)

    def select(self, rows: Sequence[int]) -> "Poses":
        """The persons of these rows."""
        chosen = np.asarray(rows, int)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Poses(
            **{key: value[chosen] if isinstance(value, np.ndarray) else value for key, value in fields.items()}
        )

    @property
    def names(self) -> tuple[str, ...]:
        """J joint names."""
        return self.joint_set.joints

    @property
    def limbs(self) -> tuple[Pair, ...]:
        """Pairs of joint indices."""
        return self.joint_set.limbs


def split_batches(count: int, sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """`count` rows as batches of compiled sizes: (first row, rows, size).

    No batch is less than half full, unless of the smallest size: few sizes are enough, and padding stays cheap.
    """
    sizes, batches, start = sorted(sizes), [], 0
    while (left := count - start) > 0:
        above = min((size for size in sizes if size >= left), default=sizes[-1])
        below = max((size for size in sizes if size <= left), default=above)
        size = above if 2 * left >= above else below
        batches.append((start, min(left, size), size))
        start += size
    return batches


class Predictor:
    """A trained model: `predictor(image, boxes)` gives the poses of the persons in the boxes.

    Every batch has one of a few sizes, so that few programs are compiled: each at its first use, or all by `warm_up`.
    It runs on JAX's default device, and never downloads anything.
    """

    def __init__(
        self,
        config: Recipe,
        variables,
        *,
        steps: int | None = None,
        flip: bool | None = None,
        hypotheses: int = 1,
        noise_time: int = 300,
        batch_sizes: Sequence[int] = BATCH_SIZES,
    ):
        """Checks everything and compiles nothing.

        Args:
          config: the recipe; `variables`: its `params` and `batch_stats`.
          steps: sampling steps; 0 is the coarse branch; by default the fewest of `sampler.steps`.
          flip: average with the mirrored crop (twice the work); by default `eval.flip`.
          hypotheses: K samples a person from independently noised starts. With K > 1 a `coarse` start, which has no
            noise, becomes `coarse_noised`.
          noise_time: its t_start then, in 1..T (ours).
          batch_sizes: the sizes that are compiled.

        Raises:
          ValueError: if an argument or a field of the config is out of range.
        """
        if hypotheses < 1 or (hypotheses > 1 and steps == 0):
            raise ValueError(f"hypotheses={hypotheses}: must be at least 1, and 1 for the coarse branch (steps=0)")
        if not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(f"batch_sizes={batch_sizes}: must be one or more positive numbers")
        self.config, self.variables = config, jax.device_put(variables)
        flip = config.eval.flip if flip is None else flip
        settings, schedule = _settings(config, steps, hypotheses, noise_time), build_schedule(config.diffusion)
        self.sampler = PoseSampler(build_model(config), schedule, settings, flip, config.sampler.seed, hypotheses)
        self.model, self.batch_sizes = self.sampler.model, tuple(sorted(batch_sizes))
        self._spec, self._run = crop_spec(config), jax.jit(self.sampler.poses)

    @classmethod
    def from_workdir(cls, path: str, **options) -> "Predictor":
        """The newest checkpoint of a training run, with its config and joint set.

        The parameters are those that an evaluation uses; see `read_variables`.

        Args:
          options: see `__init__`.

        Raises:
          FileNotFoundError, ValueError: if there is no checkpoint, or an option is out of range.
        """
        # Here, because a model file needs no orbax.
        from dpose_jax.workdir.checkpoints import read_variables

        return cls(stored_recipe(path), read_variables(path).variables, **options)

    @classmethod
    def from_file(cls, path: str = model_folder.SHIPPED, **options) -> "Predictor":
        """A model folder as `python -m dpose_jax.export --weights=FOLDER` writes it; see `model_folder.load`.

        By default the small model that comes with the package: its README.md says what it can do, and what not.
        """
        config, variables, _ = model_folder.load(path)
        return cls(config, variables, **options)

    @classmethod
    def from_weights(
        cls, source: str, *, joint_set: str | None = None, input_size: tuple[int, int] | None = None, **options
    ) -> "Predictor":
        """A published HRNet pose model as plain HRNet, by its authors' protocol; see `published.read_pose_model`.

        Args:
          source: a name such as `hrnet_w32`, downloaded once, or a file of official HRNet or mmpose.
          options: see `__init__`; `steps` is 0.

        Raises:
          FileNotFoundError, ConnectionError, ValueError: as `published.read_pose_model` does.
        """
        recipe, variables = read_pose_model(source, joint_set=joint_set, input_size=input_size)
        return cls(recipe, variables, steps=0, **options)

    @classmethod
    def load(cls, workdir: str | None = None, model: str | None = None, **options) -> "Predictor":
        """`from_workdir` or `from_file`, whichever is given; without either, the model that comes with the package.

        Raises:
          ValueError: if both are given; else as those two.
        """
        if workdir is not None and model is not None:
            raise ValueError(f"give one of --workdir={workdir} and --model={model}, or neither for the package's own")
        if workdir is not None:
            return cls.from_workdir(workdir, **options)
        return cls.from_file(model or model_folder.SHIPPED, **options)

    @property
    def joint_set(self) -> JointSet:
        """Names, limbs, flip pairs and OKS sigmas of the joints."""
        return self.model.joint_set

    def warm_up(self) -> None:
        """Compiles every batch size now, so that no later call waits for the compiler."""
        for size in self.batch_sizes:
            blank = np.zeros((size, *self._spec.input_size, 3), np.uint8)
            jax.block_until_ready(self._run(self.variables, blank, np.zeros(size, np.int32)))

    def __call__(self, image, boxes=None):
        """The poses of an image, or of a list of images, whose persons then share batches.

        Args:
          image: see `load_image`; or a list of such.
          boxes: (N, 4) x, y, width, height in pixels of the upright image, or (N, 5) with a score in [0, 1]; None
            takes the whole image for one person. With a list of images, None or a list of these.

        Returns:
          `Poses`, or a list of them. A person's result depends on its image, box and place in `boxes` alone.

        Raises:
          ValueError, OSError: if an image cannot be read or a box cannot be used (not finite, empty, outside); names
            it. Boxes that are partly outside are clipped.
        """
        if not isinstance(image, list | tuple):
            return self([image], [boxes])[0]
        boxes = [None] * len(image) if boxes is None else boxes
        if len(boxes) != len(image):
            raise ValueError(f"boxes: {len(image)} images need as many, got {len(boxes)}")
        places: list[tuple[np.ndarray, np.ndarray]] = []

        def crops():
            for one, its in zip(image, boxes, strict=True):
                pixels, clipped, views, to_image = self._views(one, its)
                places.append((clipped, to_image))
                for number, view in enumerate(views):
                    yield crop.warp_image(pixels, view, self._spec), number

        found = self._in_batches(crops())
        ends = np.cumsum([len(clipped) for clipped, _ in places])
        return [
            self._poses({key: value[end - len(clipped) : end] for key, value in found.items()}, clipped, to_image)
            for (clipped, to_image), end in zip(places, ends, strict=True)
        ]

    def trace(self, image: ImageLike, boxes=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The denoising of each person, for `visualize.denoising_strip`; no flip test, one hypothesis.

        Returns:
          crops (N, Hx, Wx, 3) uint8, trajectory (K + 1, N, H, W, J), joints (K + 1, N, J, 2) in crop pixels.

        Raises:
          ValueError: for the coarse branch, which denoises nothing, or without a box; else as `__call__`.
        """
        trace = self._trace
        pixels, boxes, views, _ = self._views(image, boxes)
        if not views:
            raise ValueError("boxes: at least one is needed to show a denoising")
        crops = np.stack([crop.warp_image(pixels, view, self._spec) for view in views])
        parts = []
        for start, rows, size in split_batches(len(crops), self.batch_sizes):
            inputs = _padded(size, crops[start : start + rows], np.arange(start, start + rows, dtype=np.int32))
            trajectory, joints, _ = jax.device_get(trace(self.variables, *inputs))
            parts.append((trajectory[:, :rows], joints[:, :rows]))
        trajectory, joints = (np.concatenate(column, axis=1) for column in zip(*parts, strict=True))
        return crops, trajectory, joints

    @functools.cached_property
    def _trace(self) -> Callable:
        if not self.sampler.settings:
            raise ValueError("steps=0: the coarse branch has no denoising to show")
        return jax.jit(self.sampler.trace)

    def _views(self, image: ImageLike, boxes) -> tuple[np.ndarray, np.ndarray, list[crop.View], np.ndarray]:
        """The image's pixels, its clipped boxes (N, 5), their views, and the maps (N, 2, 3) from crop to image."""
        pixels = load_image(image)
        boxes = [[0, 0, pixels.shape[1], pixels.shape[0]]] if boxes is None else boxes
        boxes, problems = checked_boxes(boxes, pixels.shape[:2])
        if any(problems):
            raise ValueError(next(text for text in problems if text))
        views = [crop.padded_view(box[:4], self._spec) for box in boxes]
        to_image = [crop.invert(crop.view_matrix(view, self._spec)) for view in views]
        return pixels, boxes, views, np.array(to_image).reshape(-1, 2, 3)

    def _in_batches(self, persons: Iterable[tuple[np.ndarray, int]]) -> dict[str, np.ndarray]:
        """(crop, number) of every person -> what `PoseSampler.poses` gives, one row a person."""
        pending, counts, persons = [], [], iter(persons)
        # A largest batch at a time: of thousands of crops no more are held than are on their way.
        while chunk := list(itertools.islice(persons, self.batch_sizes[-1])):
            crops, numbers = (np.stack(column) for column in zip(*chunk, strict=True))
            for start, rows, size in split_batches(len(chunk), self.batch_sizes):
                some = slice(start, start + rows)
                pending.append(self._run(self.variables, *_padded(size, crops[some], numbers[some].astype(np.int32))))
                counts.append(rows)
        if not pending:
            return self._empty()
        done = jax.device_get(pending)
        return {
            key: np.concatenate([part[key][:rows] for part, rows in zip(done, counts, strict=True)]) for key in done[0]
        }

    def _empty(self) -> dict[str, np.ndarray]:
        blank = jax.ShapeDtypeStruct((1, *self._spec.input_size, 3), jnp.uint8)
        shapes = jax.eval_shape(self._run, self.variables, blank, jax.ShapeDtypeStruct((1,), jnp.int32))
        return {key: np.zeros((0, *like.shape[1:]), like.dtype) for key, like in shapes.items()}

    def _poses(self, found: dict[str, np.ndarray], boxes: np.ndarray, to_image: np.ndarray) -> Poses:
        hypotheses = found.get("hypotheses")
        if hypotheses is not None:
            flat = to_image_pixels(hypotheses.reshape(len(boxes), -1, 2), to_image)
            hypotheses = flat.reshape(hypotheses.shape)
        return Poses(
            keypoints=to_image_pixels(found["keypoints"], to_image),
            keypoint_scores=found["scores"],
            scores=score_persons(found["scores"], boxes[:, 4], self.config.eval.min_joint_score),
            covariances=uncertainty.transform_covariance(found["covariances"], to_image[:, :, :2]),
            boxes=boxes[:, :4],
            hypotheses=hypotheses,
            joint_set=self.joint_set,
        )


def _settings(recipe: Recipe, steps: int | None, hypotheses: int, noise_time: int) -> tuple[SamplerSettings, ...]:
    if steps == 0:
        return ()
    fewest = min(recipe.sampler.steps) if steps is None else steps
    (chosen,) = sampler_settings(recipe.override({"sampler.steps": (fewest,)}).sampler)
    if hypotheses > 1 and chosen.start == "coarse":
        chosen = noised_start(chosen, noise_time, recipe.diffusion.timesteps)
    return (chosen,)


def _padded(size: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """Each array with rows of zeros up to `size`."""
    return [np.concatenate([a, np.zeros((size - len(a), *a.shape[1:]), a.dtype)]) for a in arrays]
