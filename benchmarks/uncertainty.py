"""Uncertainty: whether the spread of hypotheses, the curvature of the peak or its height knows where the errors are."""

from absl import flags
from ml_collections import config_flags

from benchmarks import reliability, report
from dpose_jax import Predictor
from dpose_jax.data.datasets import make_source
from dpose_jax.evaluation.evaluator import protocol_facts, restore
from dpose_jax.evaluation.report import needs_annotated_boxes

CONFIG = config_flags.DEFINE_config_file("config", None, "The file of configs/ that was trained.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.", required=True)
HYPOTHESES = flags.DEFINE_integer("hypotheses", 8, "K samples a person, from independently noised starts.")
STEPS = flags.DEFINE_integer("steps", 1, "Sampling steps of each.")
NOISE_TIME = flags.DEFINE_integer("noise_time", 300, "t_start of the noised starts, in 1..T.")
SHARES = flags.DEFINE_list("shares", ["0", "0.1", "0.2", "0.3", "0.5"], "Shares of the persons to drop.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", required=True)


def main() -> None:
    """Measures, prints the table and writes the report."""
    environment, config = report.environment(), CONFIG.value
    needs_annotated_boxes(config, "uncertainty")
    shares = [float(text) for text in SHARES.value]
    if not all(0 <= share < 1 for share in shares):
        raise ValueError(f"shares={shares}: must lie in [0, 1)")
    if HYPOTHESES.value < 2:
        raise ValueError(f"hypotheses={HYPOTHESES.value}: must be at least 2")
    source, restored = make_source(config, config.eval.split, training=False), restore(config, WORKDIR.value)
    predictor = Predictor(
        config, restored.variables, steps=STEPS.value, hypotheses=HYPOTHESES.value, noise_time=NOISE_TIME.value
    )
    predictions, doubts = reliability.collect(predictor, source, config.eval.batch_size)
    errors = reliability.joint_errors(source, predictions)
    rows = []
    for name, doubt in doubts.items():
        without = reliability.accuracy_without_worst(
            source, predictions, doubt.mean(axis=1), shares, predictor.joint_set, config
        )
        columns = {f"AP without {share:.0%}": value for share, value in without.items()}
        rows.append({"doubt": name, "rank correlation": reliability.rank_correlation(doubt, errors)} | columns)
    settings = predictor.settings
    protocol = protocol_facts(config, predictor.model, restored) | {
        "persons": len(predictions.index),
        "hypotheses": HYPOTHESES.value,
        "steps": settings.steps,
        "start": settings.start,
        "t_start": settings.t_start,
    }
    report.write(OUT.value, rows, environment=environment, protocol=protocol)
