"""Evaluates a workdir: restore, predict every person of a split, score, write the report and pictures."""

import contextlib
import dataclasses
import os

import jax
import numpy as np
from tqdm import tqdm

from dpose_jax import inference, parallel
from dpose_jax.data.pipeline import eval_batches
from dpose_jax.data.records import Source
from dpose_jax.data.sources import make_source
from dpose_jax.diffusion.sampler import sampler_settings
from dpose_jax.evaluation import pictures
from dpose_jax.evaluation.coco import write_results
from dpose_jax.evaluation.protocol import Predictions, format_table, summarise
from dpose_jax.files import write_json
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.training.checkpoints import Checkpoints, check_workdir, stored_config
from dpose_jax.training.loop import check_fields
from dpose_jax.training.metrics import BadRecords
from dpose_jax.training.state import averaged_params, initial_state, make_optimizer


@dataclasses.dataclass(frozen=True)
class Restored:
    """A trained model: `params` and `batch_stats`, and where they come from."""

    variables: dict
    step: int
    ema: bool
    seed: int


def restore(config, workdir: str) -> Restored:
    """The newest checkpoint of `workdir`; with `config.eval.ema`, its moving average where there is one.

    Raises:
      ValueError: if the workdir holds another model.
      FileNotFoundError: if it holds no checkpoint.
    """
    check_workdir(config, workdir)
    if not os.path.isdir(workdir):
        raise FileNotFoundError(f"workdir {workdir!r}: no such folder")
    model, optimizer = build_model(config), make_optimizer(config)
    everywhere = parallel.replicated(parallel.make_mesh())
    abstract = jax.eval_shape(lambda variables: initial_state(variables, optimizer), abstract_variables(model))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), abstract)
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        state = checkpoints.restore(abstract)
    seed = stored_config(workdir)["seed"]
    average = averaged_params(state) if config.eval.ema else None
    params = state.params if average is None else average
    return Restored({"params": params, "batch_stats": state.batch_stats}, int(state.step), average is not None, seed)


def evaluate(config, workdir: str, out: str | None = None) -> dict:
    """Evaluates the coarse branch and each K of `config.sampler.steps` on `config.eval.split`.

    Writes the report to `out` (default: WORKDIR/eval.json), a COCO results file for each result into
    WORKDIR/results/ and pictures into WORKDIR/pictures/; prints the report as a table.

    Returns:
      The report, see `protocol.summarise`.

    Raises:
      ValueError, FileNotFoundError: if config, data or workdir break a rule, or too many records are unreadable.
    """
    check_fields(config)
    mesh = parallel.make_mesh()
    parallel.check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
    settings, schedule, model = sampler_settings(config), build_schedule(config), build_model(config)
    source = make_source(config, config.eval.split, training=False)
    restored = restore(config, workdir)
    predict = inference.make_predict(model, schedule, settings, flip=config.eval.flip, seed=config.sampler.seed)
    everywhere, split = parallel.replicated(mesh), parallel.batch_sharding(mesh)
    jitted = jax.jit(predict, in_shardings=(everywhere, split, split), out_shardings=split)

    chosen = pictures.choose(len(source), config.eval.pictures)
    predictions, drawn = _predict_all(config, source, restored.variables, jitted, mesh, chosen)
    facts = protocol_facts(config, model, restored)
    report, results = summarise(source, predictions, model.joint_set, config, facts)
    for name, rows in results.items():
        write_results(os.path.join(workdir, "results", f"{config.eval.split}_{config.eval.boxes}_{name}.json"), rows)
    write_json(out or os.path.join(workdir, "eval.json"), report)
    print(format_table(report))
    if drawn:
        folder = os.path.join(workdir, "pictures")
        pictures.draw(
            folder, config, source, model, schedule, restored.variables, settings, drawn, report["best"]["name"]
        )
        print(f"pictures: {folder}")
    return report


def protocol_facts(config, model, restored: Restored) -> dict:
    """What a reader needs to know beside the data and the boxes to place a figure; JSON values."""
    sampler = config.sampler
    drawn = config.data.source == "synthetic"
    return {
        "data": "synthetic" if drawn else config.data[f"{config.eval.split}_annotations"],
        "split": config.eval.split,
        "input_size": list(config.input_size),
        "stride": config.stride,
        "crop": f"{config.crop.warp}, padding {config.crop.padding}",
        "codec": f"{model.codec.name}+{model.codec.refine}, sigma {model.codec.sigma}, blur {model.codec.blur}",
        "zeta": config.diffusion.zeta,
        "flip": config.eval.flip,
        "flip_shift": model.codec.flip_shift if config.eval.flip else 0,
        "steps": list(sampler.steps),
        "update_rule": sampler.update_rule,
        "start": sampler.start,
        "t_start": sampler.t_start,
        "eta": sampler.eta,
        "refresh": sampler.refresh,
        "early_stop": sampler.early_stop,
        "sampler_seed": sampler.seed,
        "seed": restored.seed,
        "ema": restored.ema,
        "step": restored.step,
        "dtype": config.model.dtype,
        "device": jax.devices()[0].device_kind,
    }


def _predict_all(config, source: Source, variables, jitted, mesh, chosen: np.ndarray):
    """Predictions by name in image pixels, and the rows of the persons to be drawn."""
    bad = BadRecords(source, config.data.max_bad_share)
    parts: dict[str, list] = {}
    drawn = []
    for batch in tqdm(eval_batches(config, source, config.eval.batch_size), unit="batch", desc="predict"):
        bad.add(batch["bad_index"])
        inputs = parallel.put_batch({key: batch[key] for key in ("image", "annotation_id")}, mesh)
        joints = jax.device_get(jitted(variables, inputs["image"], inputs["annotation_id"]))
        valid = batch["mask"] > 0
        for name, (keypoints, scores) in joints.items():
            moved = inference.to_image_pixels(keypoints, batch["to_image"])
            parts.setdefault(name, []).append((batch["index"][valid], moved[valid], scores[valid]))
        for row in np.flatnonzero(np.isin(batch["index"], chosen) & valid):
            crops = {name: keypoints[row] for name, (keypoints, _) in joints.items()}
            drawn.append({key: value[row] for key, value in batch.items()} | {"joints": crops})
    merged = {name: [np.concatenate(column) for column in zip(*rows, strict=True)] for name, rows in parts.items()}
    return {name: Predictions(*columns) for name, columns in merged.items()}, drawn
