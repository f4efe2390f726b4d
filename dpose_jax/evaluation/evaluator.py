"""Evaluates a workdir: restore, predict every person of a split, score, write the report and pictures."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dpose_jax.data.bad_records import BadRecords
from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches, eval_example
from dpose_jax.data.sample import Source
from dpose_jax.evaluation import pictures
from dpose_jax.evaluation.coco import write_results
from dpose_jax.evaluation.report import Predictions, format_table, summarise
from dpose_jax.models.pose_sampler import PoseSampler, to_image_pixels
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import multihost, sharding
from dpose_jax.workdir import files
from dpose_jax.workdir.checkpoints import Restored, check_workdir, read_variables


def restore(recipe: Recipe, workdir: str) -> Restored:
    """The checkpoint of `workdir` that `recipe.eval` names; with `eval.ema`, its moving averages where there are any.

    Raises:
      ValueError: if the workdir holds another model.
      FileNotFoundError: if it holds no such checkpoint.
    """
    if not files.exists(workdir):
        raise FileNotFoundError(f"workdir {workdir!r}: no such folder")
    check_workdir(recipe, workdir)
    return read_variables(workdir, which=recipe.eval.checkpoint, ema=recipe.eval.ema)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a split was predicted as: N persons in source order, the unreadable left out.

    Attributes:
      index: (N,) int, into the source; to_image: (N, 2, 3) affine maps from crop to image.
      joints: by result name, keypoints (N, J, 2) in crop pixels and scores (N, J).
    """

    index: np.ndarray
    to_image: np.ndarray
    joints: dict[str, tuple[np.ndarray, np.ndarray]]


class Evaluator:
    """Predicts and scores `config.eval.split`, as often as asked; reads the source and builds the program once.

    All processes of a run call it together; each predicts its share, and each gets the scores of the whole.

    Raises:
      ValueError, FileNotFoundError: if config or data break a rule.
    """

    def __init__(self, config: Recipe, mesh: jax.sharding.Mesh):
        sharding.check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
        self.config, self.sampler = config, PoseSampler.of(config)
        self.model = self.sampler.model
        self.source = make_source(config, config.eval.split, training=False)
        self._mesh = mesh
        everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        self._predict = jax.jit(self.sampler.joints, in_shardings=(everywhere, split, split), out_shardings=split)

    def predict(self, variables, stop: Callable[[], bool] = lambda: False) -> Rows | None:
        """Predicts every person; `stop` is asked after every batch, and None comes back once it says so.

        Raises:
          ValueError: if too many records are unreadable.
        """
        config, parts = self.config, []
        variables = jax.device_put(variables, sharding.replicated(self._mesh))
        shard = (jax.process_index(), jax.process_count())
        batches = eval_batches(config, self.source, config.eval.batch_size, shard=shard)
        for batch in tqdm(batches, unit="batch", desc="predict", disable=not multihost.is_first()):
            inputs = sharding.put_batch({key: batch[key] for key in ("image", "annotation_id")}, self._mesh)
            joints = self._predict(variables, inputs["image"], inputs["annotation_id"])
            facts = {key: batch[key] for key in ("index", "mask", "bad_index", "to_image")}
            parts.append(facts | {"joints": jax.tree.map(sharding.local_rows, joints)})
            if stop():
                return None
        rows: Any = multihost.gather(jax.tree.map(lambda *columns: np.concatenate(columns), *parts))
        BadRecords(self.source, config.data.max_bad_share).add(rows["bad_index"])
        order = np.argsort(rows["index"], kind="stable")
        rows = jax.tree.map(lambda column: column[order[rows["mask"][order] > 0]], rows)
        return Rows(rows["index"], rows["to_image"], rows["joints"])

    def score(self, rows: Rows, facts: dict | None = None) -> tuple[dict, dict]:
        """The report, with `facts` in its protocol, and the COCO results by name; see `protocol.summarise`."""
        predictions = {
            name: Predictions(rows.index, to_image_pixels(keypoints, rows.to_image), scores)
            for name, (keypoints, scores) in rows.joints.items()
        }
        return summarise(self.source, predictions, self.model.joint_set, self.config, facts)

    def best_ap(self, variables, stop: Callable[[], bool]) -> float | None:
        """AP of the best result of `variables`, 0 without ground truth; None if `stop` ended it."""
        rows = self.predict(variables, stop)
        return None if rows is None else self.score(rows)[0]["best"]["AP"] or 0.0


def checked_batches(config: Recipe, source: Source, size: int) -> Iterator[dict[str, np.ndarray]]:
    """`eval_batches` of one process, with a bar.

    Raises:
      ValueError: as soon as too many records are unreadable.
    """
    bad = BadRecords(source, config.data.max_bad_share)
    for batch in tqdm(eval_batches(config, source, size), unit="batch", desc="predict"):
        bad.add(batch["bad_index"])
        yield batch


def evaluate(config: Recipe, workdir: str, out: str | None = None) -> dict:
    """Evaluates the coarse branch and each K of `config.sampler.steps` on `config.eval.split`.

    Writes the report to WORKDIR/eval.json, a COCO results file for each result into WORKDIR/results/ and pictures into
    WORKDIR/pictures/, or with `out`, FOLDER/NAME.json, all into FOLDER/NAME/ but the report; prints the report as a
    table. Of several processes the first one writes and prints.

    Returns:
      The report, see `protocol.summarise`.

    Raises:
      ValueError, FileNotFoundError: if config, data, workdir or `out` break a rule, or too many records are unreadable.
    """
    if out and not out.endswith(".json"):
        raise ValueError(f"--out={out}: must end in .json")
    evaluator = Evaluator(config, sharding.make_mesh())
    restored = restore(config, workdir)
    rows = evaluator.predict(restored.variables)
    assert rows is not None
    report, results = evaluator.score(rows, protocol_facts(config, evaluator.model, restored))
    if not multihost.is_first():
        return report
    beside = out.removesuffix(".json") if out else workdir
    for name, lines in results.items():
        write_results(os.path.join(beside, "results", f"{config.eval.split}_{config.eval.boxes}_{name}.json"), lines)
    files.write_json(out or os.path.join(workdir, "eval.json"), report)
    print(format_table(report))
    drawn = _drawn_rows(evaluator, rows)
    if drawn:
        folder = os.path.join(beside, "pictures")
        # On the host: this process alone draws, which arrays of all processes do not allow.
        variables = jax.device_get(restored.variables)
        pictures.draw_pictures(folder, evaluator.source, evaluator.sampler, variables, drawn, report["best"]["name"])
        print(f"pictures: {folder}")
    return report


def protocol_facts(config: Recipe, model, restored: Restored) -> dict:
    """What a reader needs to know beside the data and the boxes to place a figure; JSON values."""
    sampler = config.sampler
    drawn = config.data.source == "synthetic"
    return {
        "source": config.data.source,
        "data": "synthetic" if drawn else config.data.annotations(config.eval.split),
        "split": config.eval.split,
        "input_size": list(config.input_size),
        "stride": config.stride,
        "crop": f"{config.crop.warp}, padding {config.crop.padding}",
        "codec": f"{model.codec.name}+{model.codec.refine}, sigma {model.codec.sigma}, blur {model.codec.blur}",
        "zeta": config.diffusion.zeta,
        "masks": _masks_in_words(config.masks),
        "flip": config.eval.flip,
        "flip_shift": model.codec.flip_shift if config.eval.flip else 0,
        "steps": list(sampler.steps),
        "update_rule": sampler.update_rule,
        "start": sampler.start,
        "t_start": sampler.t_start,
        "eta": sampler.eta,
        "refresh": sampler.refresh,
        "mirrored": sampler.mirrored,
        "sampler_seed": sampler.seed,
        "seed": restored.seed,
        "ema": restored.averaged,
        "step": restored.step,
        "dtype": config.model.dtype,
        "device": jax.devices()[0].device_kind,
    }


def _masks_in_words(masks) -> str:
    sizes = {"keypoints": masks.radius, "skeleton": masks.half_width}
    kinds = [f"{name} {size}" for name, size in sizes.items() if getattr(masks, name)]
    return ", ".join([*kinds, f"softness {masks.softness}"]) if kinds else "none"


def _drawn_rows(evaluator: Evaluator, rows: Rows) -> list[dict]:
    """The persons to be drawn, each as its row of a batch with `joints` beside."""
    chosen = pictures.choose(len(evaluator.source), evaluator.config.eval.pictures)
    read = eval_example(evaluator.config, evaluator.source)
    return [
        read(int(rows.index[row])) | {"joints": {name: keypoints[row] for name, (keypoints, _) in rows.joints.items()}}
        for row in np.flatnonzero(np.isin(rows.index, chosen))
    ]
