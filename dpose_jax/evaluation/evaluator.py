"""Evaluates a workdir: restores, predicts every person of a split, scores, writes the report and pictures."""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import numpy as np

from dpose_jax.data.datasets import make_source
from dpose_jax.evaluation.pictures import draw_pictures, prediction_picture
from dpose_jax.evaluation.predict_split import Rows, Stopped, predict_split
from dpose_jax.evaluation.report import format_table, summarise
from dpose_jax.evaluation.results import write_results
from dpose_jax.models.diffusion_pose import DiffusionPose
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Masks, Recipe
from dpose_jax.runtime import multihost, sharding
from dpose_jax.runtime.shortage import named_shortage
from dpose_jax.workdir import files
from dpose_jax.workdir.checkpoints import Restored, check_workdir, read_variables


def restore(recipe: Recipe, workdir: str) -> Restored:
    """The checkpoint of `workdir` that `recipe.eval` names, with `eval.ema` its moving averages where there are any.

    Raises ValueError if the workdir holds another model, FileNotFoundError if it holds no such checkpoint.
    """
    if not files.exists(workdir):
        raise FileNotFoundError(f"workdir {workdir!r}: no such folder")
    check_workdir(recipe, workdir)
    return read_variables(workdir, which=recipe.eval.checkpoint, ema=recipe.eval.ema)


class Evaluator:
    """Predicts and scores `eval.split`, as often as asked; reads the source and builds the program once.

    All processes of a run call it together. Each predicts its share, and each gets the scores of the whole. Raises
    ValueError or FileNotFoundError if recipe or data break a rule.
    """

    def __init__(self, recipe: Recipe, mesh: jax.sharding.Mesh):
        sharding.check_batch_size("eval.batch_size", recipe.eval.batch_size, mesh)
        self.recipe, self.sampler = recipe, PoseSampler.of(recipe)
        self.source = multihost.agreed(lambda: make_source(recipe, recipe.eval.split, training=False))
        self._mesh = mesh
        everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        self._joints = jax.jit(self.sampler.joints, in_shardings=(everywhere, split, split), out_shardings=split)

    def predict(self, variables, stop: Callable[[], bool] = lambda: False) -> Rows:
        """Predicts every person, see `predict_split`; the rows' outputs are the joints by result name."""
        variables = jax.device_put(variables, sharding.replicated(self._mesh))
        predict = functools.partial(self._joints, variables)
        half = ", or set model.dtype=bfloat16" if self.recipe.model.dtype == "float32" else ""
        with named_shortage(f"lower eval.batch_size={self.recipe.eval.batch_size}{half}"):
            return predict_split(self.recipe, self.source, predict, mesh=self._mesh, stop=stop)

    def score(self, rows: Rows, metadata: dict | None = None) -> tuple[dict, dict]:
        """The report, with `metadata` in its protocol, and the COCO results by name; see `report.summarise`."""
        predictions = {name: rows.predictions(*rows.outputs[name]) for name in self.sampler.names}
        return summarise(self.source, predictions, self.sampler.model.joint_set, self.recipe, metadata)

    def best_ap(
        self, variables, stop: Callable[[], bool], show: Callable[[np.ndarray], None] | None = None
    ) -> float | None:
        """AP of the best result of `variables`, 0 without ground truth; None if `stop` ended it.

        `show` gets a picture of some predictions beside ground truth, (h, w, 3) uint8 RGB.
        """
        try:
            rows = self.predict(variables, stop)
        except Stopped:
            return None
        best = self.score(rows)[0]["best"]
        if show is not None:
            joint_set = self.sampler.model.joint_set
            picture = prediction_picture(self.recipe, self.source, joint_set, rows, best["name"])
            if picture is not None:
                show(picture)
        return best["AP"] or 0.0


def evaluate(recipe: Recipe, workdir: str, out: str | None = None) -> dict:
    """Evaluates the coarse branch and each K of `sampler.steps` on `eval.split`.

    Writes the report to WORKDIR/eval.json, a COCO results file for each result into WORKDIR/results/ and pictures into
    WORKDIR/pictures/. With `out`, FOLDER/NAME.json, the report goes there and the rest into FOLDER/NAME/. Prints the
    report as a table. Of several processes the first one writes and prints. Returns the report, see `summarise`.

    Raises ValueError or FileNotFoundError if recipe, data, workdir or `out` break a rule, or too many records are
    unreadable.
    """
    multihost.check_hosts(recipe, workdir)
    evaluator = _evaluator(recipe, out)
    restored = restore(recipe, workdir)
    metadata = protocol_facts(recipe, evaluator.sampler.model, restored)
    folder = out.removesuffix(".json") if out else workdir
    return _report(evaluator, restored.variables, metadata, out or os.path.join(workdir, "eval.json"), folder)


def evaluate_weights(recipe: Recipe, restored: Restored, source: dict[str, str], out: str) -> dict:
    """Evaluates a published pose model or a model folder as `evaluate` does a workdir; all goes where `out` says.

    `source`, {"weights": name} or {"model": folder}, joins the protocol.
    """
    multihost.check_hosts(recipe, out)
    evaluator = _evaluator(recipe, out)
    metadata = protocol_facts(recipe, evaluator.sampler.model, restored) | source
    return _report(evaluator, restored.variables, metadata, out, out.removesuffix(".json"))


def _evaluator(recipe: Recipe, out: str | None) -> Evaluator:
    if out and not out.endswith(".json"):
        raise ValueError(f"--out={out!r}: must end in .json")
    return Evaluator(recipe, sharding.make_mesh())


def _report(evaluator: Evaluator, variables, metadata: dict, out: str, folder: str) -> dict:
    """Predicts, scores, and writes the report to `out`, results and pictures into `folder`."""
    recipe, rows = evaluator.recipe, evaluator.predict(variables)
    report, results = evaluator.score(rows, metadata)
    if not multihost.is_first():
        return report
    for name, lines in results.items():
        write_results(os.path.join(folder, "results", f"{recipe.eval.split}_{recipe.eval.boxes}_{name}.json"), lines)
    files.write_json(out, report)
    print(format_table(report))
    folder = os.path.join(folder, "pictures")
    source, sampler, best = evaluator.source, evaluator.sampler, report["best"]["name"]
    if draw_pictures(folder, recipe, source, sampler, variables, rows, best):
        print(f"pictures: {folder}")
    return report


def protocol_facts(recipe: Recipe, model: DiffusionPose, restored: Restored) -> dict:
    """What a report needs to say beside the data and the boxes; JSON values."""
    codec, sampler, source = model.codec, dataclasses.asdict(recipe.sampler), recipe.data.source
    sampler |= {"steps": list(recipe.sampler.steps), "sampler_seed": sampler.pop("seed")}
    return {
        "source": source,
        "data": source if source in ("synthetic", "rendered") else recipe.data.annotations(recipe.eval.split),
        "split": recipe.eval.split,
        "input_size": list(recipe.input_size),
        "stride": recipe.stride,
        "crop": f"{recipe.crop.warp}, padding {recipe.crop.padding}",
        "codec": f"{codec.name}+{codec.refine}, sigma {codec.sigma}, blur {codec.blur}",
        "zeta": recipe.diffusion.zeta,
        "masks": _masks_in_words(recipe.masks),
        "flip": recipe.eval.flip,
        "flip_shift": codec.flip_shift if recipe.eval.flip else 0,
        **sampler,
        "seed": restored.seed,
        "ema": restored.averaged,
        "step": restored.step,
        "dtype": recipe.model.dtype,
        "device": jax.devices()[0].device_kind,
        "training_device": restored.training_device,
    }


def _masks_in_words(masks: Masks) -> str:
    sizes = {"keypoints": masks.radius, "skeleton": masks.half_width}
    kinds = [f"{name} {size}" for name, size in sizes.items() if getattr(masks, name)]
    return ", ".join([*kinds, f"softness {masks.softness}"]) if kinds else "none"
