"""Ground truth and results for the tests of the metrics, and two references: pycocotools, and the definitions in plain
Python, which share no line with the code under test."""

import contextlib
import copy
import io
import math

import numpy as np
from pycocotools.coco import COCO as CocoApi
from pycocotools.cocoeval import COCOeval

# COCO's, to the bit: a recall of 7/10 lies below its threshold of 0.7.
THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
RECALLS = np.linspace(0, 1, 101).tolist()


def ground_truth(joint_set, seed=0, images=12, per_image=4):
    """Random persons of both sizes, and of neither, with unlabelled joints; crowds, persons without joints and an
    empty image."""
    rng = np.random.default_rng(seed)
    annotations = []
    for number in range(images * per_image):
        size = rng.uniform(40, 220, 2) if number % 13 else rng.uniform(15, 30, 2)
        corner = rng.uniform(0, 400, 2)
        joints = np.zeros((joint_set.num_joints, 3))
        joints[:, :2] = np.round(corner + rng.uniform(size=(joint_set.num_joints, 2)) * size, 1)
        joints[:, 2] = rng.integers(0, 3, joint_set.num_joints)
        if number % 9 == 4:
            joints[:, 2] = 0
        joints[joints[:, 2] == 0] = 0
        annotations.append(
            {
                "id": number,  # from 0, which pycocotools alone mistakes for "unmatched"
                "image_id": 100 + number // per_image,
                "category_id": 1,
                "iscrowd": int(number % 11 == 7),
                "bbox": [float(v) for v in (*corner, *size)],
                "area": float(0.53 * size.prod()),
                "num_keypoints": int((joints[:, 2] > 0).sum()),
                "keypoints": joints.ravel().tolist(),
            }
        )
    return {
        "images": [{"id": 100 + i, "width": 640, "height": 640} for i in range(images + 1)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }


def jittered(truth, seed=1, amount=8.0, invented=0):
    """Results: the truth moved by noise of varied size, some missing, some twice, with equal scores among them.

    `invented` more are drawn for every image, so that it may hold more than the twenty that count.
    """
    rng = np.random.default_rng(seed)
    results = []
    for annotation in truth["annotations"]:
        if rng.uniform() < 0.1:
            continue
        joints = np.array(annotation["keypoints"]).reshape(-1, 3)
        joints[:, :2] += rng.normal(size=(len(joints), 2)) * amount * rng.uniform()
        for copies in range(1 + (rng.uniform() < 0.2)):
            results.append(result(annotation["image_id"], joints + [30.0 * copies, 0, 0], rng.integers(1, 20) / 20))
    for image in truth["images"]:
        for _ in range(invented):
            joints = rng.uniform(0, 600, 2) + rng.uniform(0, 150, joints.shape[:1] + (2,))
            results.append(result(image["id"], np.concatenate([joints, np.ones((len(joints), 1))], axis=1), 0.5))
    return results


def result(image, joints, score):
    return {"image_id": image, "category_id": 1, "keypoints": np.ravel(joints).tolist(), "score": float(score)}


def perfect(truth):
    return [
        result(a["image_id"], a["keypoints"], 1 - 0.001 * i)
        for i, a in enumerate(truth["annotations"])
        if a["num_keypoints"] and not a["iscrowd"]
    ]


def pycocotools_run(truth, results, sigmas, images=None):
    """The ten metrics of pycocotools as its own demo runs it, over all or some images; ids from 1, which it needs."""
    truth = copy.deepcopy(truth)
    for annotation in truth["annotations"]:
        annotation["id"] += 1
    with contextlib.redirect_stdout(io.StringIO()):
        api = CocoApi()
        api.dataset = truth
        api.createIndex()
        run = COCOeval(api, api.loadRes(copy.deepcopy(results)), "keypoints")
        run.params.kpt_oks_sigmas = np.array(sigmas)
        if images is not None:
            run.params.imgIds = images
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


def plain_ap(truth, results, sigmas, *, joints=None, images=None):
    """AP from its definition, one loop within another; of some joints or images alone."""
    joints = range(len(sigmas)) if joints is None else joints
    images = [i["id"] for i in truth["images"]] if images is None else images
    precisions = []
    for threshold in THRESHOLDS:
        outcomes, persons = [], 0
        for image in images:
            people = [a for a in truth["annotations"] if a["image_id"] == image]
            found = [r for r in results if r["image_id"] == image]
            persons += sum(not _ignored(a, joints) for a in people)
            outcomes += _outcomes(people, sorted(found, key=lambda r: -r["score"])[:20], sigmas, joints, threshold)
        outcomes.sort(key=lambda outcome: -outcome[0])
        if not persons:
            return None
        hits, curve = 0, []
        for rank, (_, hit) in enumerate(outcomes, start=1):
            hits += hit
            curve.append((hits / persons, hits / rank))
        for least in RECALLS:
            precisions.append(max((p for recall, p in curve if recall >= least), default=0.0))
    return sum(precisions) / len(precisions)


def _ignored(annotation, joints):
    return annotation["iscrowd"] or not any(annotation["keypoints"][3 * j + 2] for j in joints)


def _outcomes(people, found, sigmas, joints, threshold):
    """(score, hit) of every result that is neither left out nor given to an ignored person."""
    taken, outcomes = set(), []
    for entry in found:
        best = {}
        for ignored in (False, True):  # an ignored person takes what no other can
            for i, person in enumerate(people):
                if bool(_ignored(person, joints)) != ignored or (i in taken and not person["iscrowd"]):
                    continue
                likeness = plain_oks(entry["keypoints"], person, sigmas, joints)
                if likeness >= max(threshold, best.get("oks", 0)):
                    best = {"oks": likeness, "person": i, "ignored": ignored}
            if best:
                break
        if best:
            taken.add(best["person"])
        if not best.get("ignored"):
            outcomes.append((entry["score"], bool(best)))
    return outcomes


def plain_oks(found, person, sigmas, joints):
    labelled = [j for j in joints if person["keypoints"][3 * j + 2] > 0]
    x0, y0, w, h = person["bbox"]
    total = 0.0
    for j in labelled or joints:
        x, y = found[3 * j], found[3 * j + 1]
        if labelled:
            dx, dy = x - person["keypoints"][3 * j], y - person["keypoints"][3 * j + 1]
        else:
            dx = max(0, x0 - w - x, x - x0 - 2 * w)
            dy = max(0, y0 - h - y, y - y0 - 2 * h)
        total += math.exp(-(dx * dx + dy * dy) / (2 * person["area"] * (2 * sigmas[j]) ** 2))
    return total / len(labelled or joints)


def plain_aic(truth, results, sigmas):
    """AI Challenger's score, person by person, from the description of its published script."""
    shares = []
    for threshold in THRESHOLDS:
        hits = persons = 0
        for image in truth["images"]:
            people = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
            found = [r for r in results if r["image_id"] == image["id"]]
            persons += max(len(people), len(found))
            for person in people:
                seen = [j for j in range(len(sigmas)) if person["keypoints"][3 * j + 2] == 2]
                scale = person["bbox"][2] * person["bbox"][3] + 1
                best = 0.0
                for entry in found if seen else []:
                    total = 0.0
                    for j in seen:
                        dx = entry["keypoints"][3 * j] - person["keypoints"][3 * j]
                        dy = entry["keypoints"][3 * j + 1] - person["keypoints"][3 * j + 1]
                        total += math.exp(-(dx * dx + dy * dy) / (2 * (2 * sigmas[j]) ** 2 * scale))
                    best = max(best, total / len(seen))
                hits += best > threshold
        shares.append(hits / persons)
    return sum(shares) / len(shares)
