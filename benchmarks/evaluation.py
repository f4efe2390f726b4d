"""The OKS evaluation beside its peers, on the same detections."""

import contextlib
import functools
import importlib.util
import io
import time
from collections.abc import Callable

import numpy as np

from benchmarks import report
from dpose_jax.evaluation.coco import METRICS, evaluate_results
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.workdir.files import read_json

# Name: the modules of the class COCO and of the evaluation, and the evaluation's class.
PEERS = {
    "pycocotools": (("pycocotools.coco", "pycocotools.cocoeval"), "COCOeval"),
    "faster-coco-eval": (("faster_coco_eval", "faster_coco_eval"), "COCOeval_faster"),
    "hotcoco": (("hotcoco", "hotcoco"), "COCOeval"),
}


def evaluation(annotations: str, *, false_persons: int = 50_000, seed: int = 0, calls: int = 5) -> list[dict]:
    """Times our evaluation and that of each installed peer in turn, on the same detections.

    Args:
      annotations: a COCO `person_keypoints` file with COCO's joints.
      false_persons: detections beside the noisy copy of each person, see `noisy_detections`.
      calls: of each, after one that is not measured.

    Returns:
      a row each: `work`, `who`, `value` (median seconds), `low` and `high` (quartiles), `cpu` (median seconds of
      processor time, which other jobs disturb less), `detections`, and `difference`, the largest one of any of the
      ten metrics to ours.
    """
    truth = read_json(annotations)
    found = noisy_detections(truth, false_persons=false_persons, seed=seed)
    contenders: dict[str, Callable[[], list[float]]] = {"ours": functools.partial(_ours, truth, found)}
    for who, (modules, name) in PEERS.items():
        if importlib.util.find_spec(modules[0].split(".")[0]):
            contenders[who] = functools.partial(_peer, modules, name, truth, found)
    metrics = {who: np.array(call()) for who, call in contenders.items()}
    wall: dict[str, list[float]] = {who: [] for who in contenders}
    cpu: dict[str, list[float]] = {who: [] for who in contenders}
    for _ in range(calls):
        for who, call in contenders.items():
            began, spent = time.perf_counter(), time.process_time()
            call()
            wall[who].append(time.perf_counter() - began)
            cpu[who].append(time.process_time() - spent)
    rows = []
    for who in contenders:
        seconds = report.timing(wall[who])
        row = {
            "work": "OKS evaluation, s",
            "who": who,
            "value": seconds.median,
            "low": seconds.low,
            "high": seconds.high,
        }
        row |= {"cpu": report.timing(cpu[who]).median, "detections": len(found)}
        rows.append(row | {"difference": float(np.abs(metrics[who] - metrics["ours"]).max())})
    return rows


def noisy_detections(truth: dict, *, false_persons: int, seed: int) -> list[dict]:
    """COCO results: each annotated person moved joint by joint by up to 5% of its size, and false persons.

    A false person is a person of the file moved as a whole by about its size, in an image drawn at random; its score
    is lower on average.
    """
    rng = np.random.default_rng(seed)
    persons = [a for a in truth["annotations"] if a.get("num_keypoints")]
    joints = np.array([a["keypoints"] for a in persons], np.float64).reshape(len(persons), -1, 3)
    size = np.sqrt([a["area"] for a in persons])[:, None, None]
    noise = rng.normal(size=(*joints.shape[:2], 2)) * size * 0.05 * rng.uniform(size=size.shape)
    which = rng.integers(len(persons), size=false_persons)
    moved = joints[which, :, :2] + rng.normal(size=(false_persons, 1, 2)) * size[which]
    points = np.concatenate([joints[..., :2] + noise, moved])
    points = np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=-1).reshape(len(points), -1)
    images = [image["id"] for image in truth["images"]]
    places = [a["image_id"] for a in persons] + [images[i] for i in rng.integers(len(images), size=false_persons)]
    scores = np.concatenate([rng.uniform(size=len(persons)), rng.uniform(0, 0.7, false_persons)])
    return [
        {"image_id": place, "category_id": 1, "keypoints": row, "score": score}
        for place, row, score in zip(places, points.tolist(), scores.tolist(), strict=True)
    ]


def _ours(truth: dict, found: list[dict]) -> list[float]:
    return [-1.0 if value is None else value for value in evaluate_results(truth, found, COCO).values()]


def _peer(modules: tuple[str, str], evaluation: str, truth: dict, found: list[dict]) -> list[float]:
    """The ten metrics of a package with pycocotools' interface."""
    api, evaluator = (importlib.import_module(module) for module in modules)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = api.COCO()
        coco.dataset = {**truth, "annotations": [dict(a) for a in truth["annotations"]]}  # it writes into them
        coco.createIndex()
        run = getattr(evaluator, evaluation)(coco, coco.loadRes([dict(result) for result in found]), "keypoints")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return list(run.stats[: len(METRICS)])
