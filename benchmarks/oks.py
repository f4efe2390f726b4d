"""How long the OKS evaluation takes, beside its peers: from parsed JSON to COCO's ten metrics."""

from absl import flags

from benchmarks import evaluation, report

ANNOTATIONS = flags.DEFINE_string("annotations", None, "A COCO person_keypoints file.", required=True)
FALSE_PERSONS = flags.DEFINE_integer("false_persons", 50_000, "Detections beside a noisy copy of each person.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", required=True)


def main() -> None:
    environment = report.environment()
    rows = evaluation.evaluation(ANNOTATIONS.value, false_persons=FALSE_PERSONS.value)
    environment["versions"] |= report.versions(*evaluation.PEERS)
    report.write(OUT.value, rows, environment=environment, protocol={"annotations": ANNOTATIONS.value})
