"""How long the OKS evaluation takes, beside its peers: from parsed JSON to COCO's ten metrics."""

import contextlib
import functools
import importlib.util
import io

import numpy as np
from absl import flags

from benchmarks import report
from benchmarks.annotations import read_ground_truth
from dpose_jax.evaluation.coco import METRICS, evaluate_results
from dpose_jax.pose.joint_sets import COCO

# The tests import several subcommands into one process; flags of the same name have to allow that.
REPEATED = {"required": True, "allow_override": True}
ANNOTATIONS = flags.DEFINE_string("annotations", None, "A COCO person_keypoints file for OKS.", allow_override=True)
FALSE_PERSONS = flags.DEFINE_integer("false_persons", 50_000, "Detections beside a noisy copy of each person.")
OUT = flags.DEFINE_string("out", None, "The report, a JSON file; the table goes beside it as .md.", **REPEATED)

# Name: the modules of the class COCO and of the evaluation, and the evaluation's class.
PEERS = {"pycocotools": ("pycocotools.coco", "pycocotools.cocoeval", "COCOeval")}
PEERS["faster-coco-eval"] = "faster_coco_eval", "faster_coco_eval", "COCOeval_faster"
PEERS["hotcoco"] = "hotcoco", "hotcoco", "COCOeval"


def main() -> None:
    """Measures, prints the table and writes the report."""
    environment, rows = report.environment(), measure(annotations(), false_persons=FALSE_PERSONS.value)
    report.write(OUT.value, rows, environment=environment, protocol={"annotations": ANNOTATIONS.value})


def annotations() -> str:
    """The file of --annotations; raises ValueError without one."""
    if ANNOTATIONS.value is None:
        raise ValueError("--annotations is not given: the OKS evaluation needs a COCO person_keypoints file")
    return ANNOTATIONS.value


def measure(file: str, *, false_persons: int, calls: int = 5) -> list[dict]:
    """A row for our evaluation and each installed peer, timed in turn, `calls` times each, on the same detections.

    Raises what `read_ground_truth` raises.
    """
    truth, _ = read_ground_truth(file, COCO)
    found = noisy_detections(truth, false_persons=false_persons)
    contenders = {"ours": functools.partial(evaluate_results, truth, found, COCO)}
    for who, names in PEERS.items():
        if importlib.util.find_spec(names[0].partition(".")[0]):
            contenders[who] = functools.partial(_peer, *names, truth, found)
    metrics = {who: [-1 if value is None else value for value in call().values()] for who, call in contenders.items()}
    rows = []
    for who, t in report.measure(contenders, seconds=0, least=calls).items():
        row = {"work": "OKS evaluation", "unit": "s", "who": who, "value": t.median, "low": t.low, "high": t.high}
        difference = float(np.abs(np.subtract(metrics[who], metrics["ours"])).max())  # of any metric
        rows.append(row | {"cpu": t.cpu, "detections": len(found), "difference": difference})
    return rows


def noisy_detections(truth: dict, *, false_persons: int, seed: int = 0) -> list[dict]:
    """COCO results: each annotated person, moved joint by joint by up to 5% of its size, and false persons."""
    rng = np.random.default_rng(seed)
    persons = [a for a in truth["annotations"] if a.get("num_keypoints")]
    joints = np.array([a["keypoints"] for a in persons], np.float64).reshape(len(persons), -1, 3)[..., :2]
    size = np.sqrt([a["area"] for a in persons])[:, None, None]
    near = joints + rng.normal(size=joints.shape) * size * 0.05 * rng.uniform(size=size.shape)
    # A false person is an annotated one, moved as a whole by about its size, in a random image; its score is lower.
    which = rng.integers(len(persons), size=false_persons)
    far = joints[which] + rng.normal(size=(false_persons, 1, 2)) * size[which]
    points = np.insert(np.concatenate([near, far]), 2, 1, axis=2).reshape(len(persons) + false_persons, -1)  # visible
    category, places = truth["categories"][0]["id"], [a["image_id"] for a in persons]
    places += [truth["images"][i]["id"] for i in rng.integers(len(truth["images"]), size=false_persons)]
    scores = np.concatenate([rng.uniform(size=len(persons)), rng.uniform(0, 0.7, false_persons)])
    return [
        {"image_id": place, "category_id": category, "keypoints": row, "score": score}
        for place, row, score in zip(places, points.tolist(), scores.tolist(), strict=True)
    ]


def _peer(api: str, module: str, name: str, truth: dict, found: list[dict]) -> dict[str, float]:
    """The ten metrics of a package with pycocotools' interface."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = importlib.import_module(api).COCO()
        coco.dataset = {**truth, "annotations": [dict(a) for a in truth["annotations"]]}  # it writes into them
        coco.createIndex()
        loaded = coco.loadRes([dict(result) for result in found])
        run = getattr(importlib.import_module(module), name)(coco, loaded, "keypoints")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return dict(zip(METRICS, run.stats, strict=False))
