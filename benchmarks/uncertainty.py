"""Uncertainty: how well the spread of hypotheses, the curvature of the peak and its height rank the errors."""

from absl import flags

from benchmarks import reliability, report
from dpose_jax import Predictor
from dpose_jax.data.datasets import make_source
from dpose_jax.evaluation.evaluator import protocol_facts
from dpose_jax.evaluation.report import needs_annotated_boxes
from dpose_jax.workdir import recipe_flags

recipe_flags.define_beside_workdir()
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.")
MODEL = flags.DEFINE_string("model", None, "Instead, a model folder, or hf:OWNER/REPO.")
HYPOTHESES = flags.DEFINE_integer("hypotheses", 8, "K samples a person, from independently noised starts.")
STEPS = flags.DEFINE_integer("steps", 1, "Sampling steps of each.")
NOISE_TIME = flags.DEFINE_integer("noise_time", 300, "t_start of the noised starts, in 1..T.")
SHARES = flags.DEFINE_list("shares", "0,0.1,0.2,0.3,0.5", "Shares of the least certain persons to leave out.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", required=True)


def main() -> None:
    """Measures, prints the table and writes the report."""
    environment = report.environment()
    recipe, restored = recipe_flags.of_workdir_or_model(WORKDIR.value, MODEL.value)
    needs_annotated_boxes(recipe, "uncertainty")
    shares = [float(text) for text in SHARES.value]
    if not all(0 <= share < 1 for share in shares):
        raise ValueError(f"shares={shares}: must lie in [0, 1)")
    if HYPOTHESES.value < 2:
        raise ValueError(f"hypotheses={HYPOTHESES.value}: must be at least 2")
    source = make_source(recipe, recipe.eval.split, training=False)
    options = {"steps": STEPS.value, "hypotheses": HYPOTHESES.value, "noise_time": NOISE_TIME.value}
    predictor = Predictor(recipe, restored.variables, **options)
    predictions, doubts = reliability.collect(predictor, source, recipe.eval.batch_size)
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
