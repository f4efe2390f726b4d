"""Uncertainty: how well the spread of hypotheses ranks the errors, and how well hypotheses cover the true joints."""

import os
from collections.abc import Mapping

from absl import flags

from benchmarks import coverage, hypotheses, reliability, report
from dpose_jax import Predictor
from dpose_jax.data.datasets import make_source
from dpose_jax.data.sample import Source
from dpose_jax.evaluation.evaluator import protocol_facts
from dpose_jax.evaluation.report import needs_annotated_boxes
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Recipe
from dpose_jax.workdir import recipe_flags
from dpose_jax.workdir.checkpoints import Restored

recipe_flags.define_beside_workdir()
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.")
MODEL = flags.DEFINE_string("model", None, "Instead, a model folder, or hf:OWNER/REPO.")
PLAIN = flags.DEFINE_string("plain", None, "The folder of a plain HRNet (loss.diffusion=0), a baseline of heatmaps.")
HYPOTHESES = flags.DEFINE_integer("hypotheses", 8, "K samples a person, from independently noised starts.")
STEPS = flags.DEFINE_integer("steps", 1, "Sampling steps of each.")
NOISE_TIME = flags.DEFINE_integer("noise_time", 300, "t_start of the noised starts, in 1..T.")
SHARES = flags.DEFINE_list("shares", "0,0.1,0.2,0.3,0.5", "Shares of the least certain persons to leave out.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; tables and figure go beside it.", required=True)


def main() -> None:
    """Measures, prints the tables, writes the reports and draws the figure."""
    environment = report.environment()
    recipe, restored = recipe_flags.of_workdir_or_model(WORKDIR.value, MODEL.value)
    needs_annotated_boxes(recipe, "uncertainty")
    shares = [float(text) for text in SHARES.value]
    if not all(0 <= share < 1 for share in shares):
        raise ValueError(f"shares={shares}: must lie in [0, 1)")
    if HYPOTHESES.value < 2:
        raise ValueError(f"hypotheses={HYPOTHESES.value}: must be at least 2")
    networks = {"model": (recipe.override({"sampler.steps": (STEPS.value,)}), restored)}
    if PLAIN.value is not None:
        networks["plain"] = hypotheses.plain_network(PLAIN.value, recipe)
    source = make_source(recipe, recipe.eval.split, training=False)
    options = {"steps": STEPS.value, "hypotheses": HYPOTHESES.value, "noise_time": NOISE_TIME.value}
    predictor = Predictor(recipe, restored.variables, **options)
    predictions, places, doubts = reliability.collect(predictor, source, recipe.eval.batch_size)
    errors, rows = reliability.joint_errors(source, predictions), []
    for name, doubt in doubts.items():
        without = reliability.accuracy_without_worst(source, predictions, doubt.mean(axis=1), shares, recipe)
        columns = {f"AP at {1 - share:.0%} coverage": value for share, value in without.items()}
        rows.append({"doubt": name, "rank correlation": reliability.rank_correlation(doubt, errors)} | columns)
    (settings,) = predictor.sampler.settings
    protocol = protocol_facts(recipe, predictor.sampler.model, restored)
    protocol |= {"persons": len(predictions.index), "hypotheses": HYPOTHESES.value, "steps": settings.steps}
    protocol |= {"start": settings.start, "t_start": settings.t_start}
    report.write(OUT.value, rows, environment=environment, protocol=protocol)

    truth = coverage.Truth.of(source, predictions.index, recipe.sampler.seed)
    candidates = {"diffusion": coverage.of_hypotheses(truth, places, predictions.keypoints)}
    candidates |= heatmap_candidates(truth, source, networks)
    table, more = coverage.summarise(truth, candidates, "diffusion")
    protocol |= {"occluded joints": int((truth.visible == 1).sum()), "visible joints": int((truth.visible == 2).sum())}
    if PLAIN.value is not None:
        plain = networks["plain"][1]
        protocol |= {"plain": {name: getattr(plain, name) for name in ("step", "seed", "averaged", "training_device")}}
    stem, base = os.path.splitext(OUT.value)[0] + "_coverage", "plain" if PLAIN.value is not None else "coarse"
    report.write(stem + ".json", table, environment=environment, protocol=protocol, **more)
    shown = ["diffusion", "denoised peaks", *(f"{base} {kind}" for kind in ("peaks", "draws", "Gaussian"))]
    coverage.write_plot(stem + ".png", more, shown)


def heatmap_candidates(
    truth: coverage.Truth, source: Source, networks: Mapping[str, tuple[Recipe, Restored]]
) -> dict[str, coverage.Candidate]:
    """Candidates by "MAP KIND" of the coarse and the denoised heatmaps of `model`, and of those of `plain`."""
    found = {}
    for network, (recipe, restored) in networks.items():
        sampler = PoseSampler.of(recipe)
        rows = hypotheses.collect(recipe, source, sampler, restored.variables, HYPOTHESES.value)
        names = ("coarse", "denoised") if network == "model" else ("plain",)
        for name, result in zip(names, sampler.names, strict=True):
            its = coverage.of_heatmaps(truth, rows, rows.outputs[result], sampler.model.codec, sampler.seed)
            found |= {f"{name} {kind}": candidate for kind, candidate in its.items()}
    return found
