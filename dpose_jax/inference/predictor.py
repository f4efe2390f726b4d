"""`Predictor`: a trained model that takes images and gives poses."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.data import crop
from dpose_jax.data.loader import crop_spec
from dpose_jax.diffusion.sampler import SamplerSettings, noised_start, sampler_settings
from dpose_jax.evaluation.results import score_persons
from dpose_jax.inference.boxes import checked_boxes
from dpose_jax.inference.images import ImageLike, load_image
from dpose_jax.inference.poses import Poses
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.pose_sampler import PoseSampler, to_image_pixels
from dpose_jax.models.weights.published import read_pose_model
from dpose_jax.pose import uncertainty
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.recipe import Recipe
from dpose_jax.workdir import model_folder
from dpose_jax.workdir.compatibility import stored_recipe

BATCH_SIZES = (1, 4, 16, 64)


class Predictor:
    """A trained model: `predictor(image, boxes)` gives the poses of the persons in the boxes.

    Every batch has one of a few sizes, so that few programs are compiled: each at its first use, or all by `warm_up`.
    It runs on JAX's default device, and never downloads anything.

    Attributes:
      recipe: of the model; variables: its `params` and `batch_stats`, on the device.
      sampler: from crops to joints; model: its network.
      batch_sizes: the sizes that are compiled.
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
    ):
        """Checks everything and compiles nothing.

        Args:
          recipe: of the model; `variables`: its `params` and `batch_stats`.
          steps: sampling steps; 0 is the coarse branch; by default the fewest of `sampler.steps`.
          flip: average with the mirrored crop (twice the work); by default `eval.flip`.
          hypotheses: K samples a person from independently noised starts. With K > 1 a `coarse` start, which has no
            noise, becomes `coarse_noised`.
          noise_time: its t_start then, in 1..T (ours).
          batch_sizes: the sizes that are compiled.

        Raises:
          ValueError: if an argument is out of range.
        """
        if hypotheses < 1 or (hypotheses > 1 and steps == 0):
            raise ValueError(f"hypotheses={hypotheses}: must be at least 1, and 1 for the coarse branch (steps=0)")
        if not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(f"batch_sizes={batch_sizes}: must be one or more positive numbers")
        self.recipe, self.variables = recipe, jax.device_put(variables)
        flip = recipe.eval.flip if flip is None else flip
        settings, schedule = _settings(recipe, steps, hypotheses, noise_time), build_schedule(recipe.diffusion)
        self.sampler = PoseSampler(build_model(recipe), schedule, settings, flip, recipe.sampler.seed, hypotheses)
        self.model, self.batch_sizes = self.sampler.model, tuple(sorted(batch_sizes))
        self._spec, self._run = crop_spec(recipe), jax.jit(self.sampler.poses)

    @classmethod
    def from_workdir(cls, path: str, **options) -> "Predictor":
        """The newest checkpoint of a training run, with its recipe; the parameters are those of an evaluation.

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

        By default the small model of the package, whose README.md lists its limits.
        """
        recipe, variables, _ = model_folder.load(path)
        return cls(recipe, variables, **options)

    @classmethod
    def from_weights(
        cls, source: str, *, joint_set: str | None = None, input_size: tuple[int, int] | None = None, **options
    ) -> "Predictor":
        """A published HRNet pose model as plain HRNet, by its authors' protocol; see `published.read_pose_model`.

        Args:
          source: a name such as `hrnet_w32`, downloaded once, or a file of official HRNet or mmpose.
          options: see `__init__`; `steps` can only be 0.

        Raises:
          FileNotFoundError, ConnectionError, ValueError: as `published.read_pose_model` does.
        """
        recipe, variables = read_pose_model(source, joint_set=joint_set, input_size=input_size)
        return cls(recipe, variables, **options)

    @classmethod
    def load(cls, workdir: str | None = None, model: str | None = None, **options) -> "Predictor":
        """`from_workdir` or `from_file`, whichever is given; without either, the bundled model.

        Raises:
          ValueError: if both are given; else as those two.
        """
        if workdir is not None and model is not None:
            raise ValueError(f"give one of --workdir={workdir} and --model={model}, or neither for the bundled model")
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

    def __call__(self, image, boxes=None) -> Any:
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

        def persons() -> Iterator[tuple[np.ndarray, int]]:
            for one, its in zip(image, boxes, strict=True):
                clipped, to_image, crops = self._crops(one, its)
                places.append((clipped, to_image))
                yield from zip(crops, itertools.count())

        found, poses, end = self._in_batches(self._run, persons()), [], 0
        for clipped, to_image in places:
            start, end = end, end + len(clipped)
            poses.append(self._poses({key: value[start:end] for key, value in found.items()}, clipped, to_image))
        return poses

    def trace(self, image: ImageLike, boxes=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The denoising of each person, for `draw.denoising_strip`; no flip test, one hypothesis.

        Returns:
          crops (N, Hx, Wx, 3) uint8, trajectory (K + 1, N, H, W, J), joints (K + 1, N, J, 2) in crop pixels.

        Raises:
          ValueError: for the coarse branch, which denoises nothing, or without a box; else as `__call__`.
        """
        if not self.sampler.settings:
            raise ValueError("steps=0: the coarse branch has no denoising to show")
        crops = list(self._crops(image, boxes)[2])
        if not crops:
            raise ValueError("boxes: at least one is needed to show a denoising")
        found = self._in_batches(self._trace, zip(crops, itertools.count()))
        return np.stack(crops), np.moveaxis(found["trajectory"], 1, 0), np.moveaxis(found["joints"], 1, 0)

    @functools.cached_property
    def _trace(self) -> Callable:
        def trace(*inputs):
            trajectory, joints, _ = self.sampler.trace(*inputs)
            return {"trajectory": jnp.moveaxis(trajectory, 1, 0), "joints": jnp.moveaxis(joints, 1, 0)}

        return jax.jit(trace)

    def _crops(self, image: ImageLike, boxes) -> tuple[np.ndarray, np.ndarray, Iterator[np.ndarray]]:
        """The clipped boxes (N, 5) of an image, the maps (N, 2, 3) from crop to image pixels, and the crops."""
        pixels = load_image(image)
        boxes = [[0, 0, pixels.shape[1], pixels.shape[0]]] if boxes is None else boxes
        clipped, problems = checked_boxes(boxes, pixels.shape[:2])
        for problem in filter(None, problems):
            raise ValueError(problem)
        views = [crop.padded_view(box[:4], self._spec) for box in clipped]
        to_image = [crop.invert(crop.view_matrix(view, self._spec)) for view in views]
        crops = (crop.warp_image(pixels, view, self._spec) for view in views)
        return clipped, np.array(to_image).reshape(-1, 2, 3), crops

    def _in_batches(self, run: Callable, persons: Iterable[tuple[np.ndarray, int]]) -> dict[str, np.ndarray]:
        """(crop, ID) of every person -> the arrays that `run` gives, one row a person."""
        pending, counts, persons = [], [], iter(persons)
        # A largest batch at a time: of thousands of crops no more are held than are on their way.
        while chunk := list(itertools.islice(persons, self.batch_sizes[-1])):
            for start, rows, size in split_batches(len(chunk), self.batch_sizes):
                crops, ids = zip(*chunk[start : start + rows], strict=True)
                padding = [np.zeros_like(crops[0])] * (size - rows)
                padded_ids = np.array([*ids, *[0] * (size - rows)], np.int32)
                pending.append(run(self.variables, np.stack([*crops, *padding]), padded_ids))
                counts.append(rows)
        if not pending:
            blank = jax.ShapeDtypeStruct((1, *self._spec.input_size, 3), jnp.uint8)
            shapes = jax.eval_shape(run, self.variables, blank, jax.ShapeDtypeStruct((1,), jnp.int32))
            return {key: np.zeros((0, *shape.shape[1:]), shape.dtype) for key, shape in shapes.items()}
        done = jax.device_get(pending)
        return {
            key: np.concatenate([part[key][:rows] for part, rows in zip(done, counts, strict=True)]) for key in done[0]
        }

    def _poses(self, found: dict[str, np.ndarray], boxes: np.ndarray, to_image: np.ndarray) -> Poses:
        hypotheses = found.get("hypotheses")
        if hypotheses is not None:
            flat = to_image_pixels(hypotheses.reshape(len(boxes), -1, 2), to_image)
            hypotheses = flat.reshape(hypotheses.shape)
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
    """`count` rows as batches of compiled sizes: (first row, rows, size).

    A batch is at least half full, unless it is of the smallest size.
    """
    sizes, batches, start = sorted(sizes), [], 0
    while (left := count - start) > 0:
        above = min((size for size in sizes if size >= left), default=sizes[-1])
        below = max((size for size in sizes if size <= left), default=above)
        size = above if 2 * left >= above else below
        batches.append((start, min(left, size), size))
        start += size
    return batches


def _settings(recipe: Recipe, steps: int | None, hypotheses: int, noise_time: int) -> tuple[SamplerSettings, ...]:
    if steps == 0 or (recipe.plain and steps is None):
        return ()
    if recipe.plain:
        raise ValueError(f"steps={steps}: a plain HRNet (loss.diffusion=0) has no denoiser; 0 is its only result")
    fewest = min(recipe.sampler.steps) if steps is None else steps
    (chosen,) = sampler_settings(recipe.override({"sampler.steps": (fewest,)}).sampler)
    if hypotheses > 1 and chosen.start == "coarse":
        chosen = noised_start(chosen, noise_time, recipe.diffusion.timesteps)
    return (chosen,)
