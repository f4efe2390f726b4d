"""Gains of a study: weighted metrics against COCO's, errors against known ones, and what is chosen where."""

import numpy as np
import pytest

from benchmarks.study.gains import (
    MEASURES,
    Gain,
    Matches,
    chosen,
    gain,
    gain_in_points,
    gains_table,
    halves,
    match,
    measure,
    read_matches,
    write_matches,
)
from benchmarks.study.tables import Reading
from dpose_jax.evaluation.coco import evaluate_results
from dpose_jax.evaluation.oks import pck
from dpose_jax.evaluation.results_check import check_inputs
from dpose_jax.pose.joint_sets import CROWDPOSE

J = CROWDPOSE.num_joints
COARSE, ONE, TWO = Reading("coarse", 0), Reading("direct", 1), Reading("direct", 2)


def crowd(images=40, noise=5.0, seed=0):
    """Ground truth and results: two persons an image, a joint without label, a crowd, an image without results."""
    random = np.random.default_rng(seed)
    annotations, results = [], []
    for i in range(images):
        for k in range(2):
            joints = random.uniform(0, 100, (J, 2)) + [200 * k, 0]
            labelled = np.full((J, 1), 2.0)
            labelled[i % J] = 0
            box = [200.0 * k, 0.0, 100.0, 100.0]
            entry = {"id": len(annotations) + 1, "image_id": 7 * i, "category_id": 1, "bbox": box, "area": 5300.0}
            keypoints = np.concatenate([joints, labelled], axis=1)
            entry |= {"iscrowd": int(i == 3 and k == 1), "keypoints": keypoints.ravel().tolist()}
            annotations.append(entry)
            if i != 5:
                moved = joints + random.normal(0, noise * random.uniform(0.2, 2), (J, 2))
                row = np.concatenate([moved, np.ones((J, 1))], axis=1).ravel().tolist()
                results.append({"image_id": 7 * i, "category_id": 1, "keypoints": row, "score": random.uniform()})
    truth = {"images": [{"id": 7 * i} for i in reversed(range(images))], "annotations": annotations}
    return truth | {"categories": [{"id": 1, "name": "person"}]}, results


def drawn_as(truth, results, weights):
    """The data set in which an image comes as often as its weight says."""
    images, annotations, found = [], [], []
    for row, times in enumerate(weights):
        for copy in range(int(times)):
            number = {"id": len(images) + 1}
            images.append(number)
            its = [a for a in truth["annotations"] if a["image_id"] == 7 * row]
            annotations += [a | {"id": a["id"] + 10_000 * copy, "image_id": number["id"]} for a in its]
            found += [r | {"image_id": number["id"]} for r in results if r["image_id"] == 7 * row]
    return truth | {"images": images, "annotations": annotations}, found


def test_weighted_images_are_repeated_ones():
    """As COCO evaluates a set in which they are repeated, and as PCK over the persons that are not crowds."""
    truth, results = crowd()
    matches = match(check_inputs(truth, results, CROWDPOSE))
    random = np.random.default_rng(1)
    for weights in (np.ones(40), random.poisson(1.0, 40)):
        expected = evaluate_results(*drawn_as(truth, results, weights), CROWDPOSE, engine="pycocotools")
        ap, ar, mean_oks, near = measure(matches, weights)
        assert (ap, ar) == pytest.approx((expected["AP"], expected["AR"]), abs=1e-12) and 0.2 < ap < 0.95
        assert 0.3 < mean_oks < 0.95 and 0.3 < near < 1
    persons = [a for a in truth["annotations"] if not a["iscrowd"] and a["image_id"] != 35]
    joints = np.array([a["keypoints"] for a in persons]).reshape(-1, J, 3)
    rows = np.array([r["keypoints"] for r in results if r["image_id"] != 21 or r["keypoints"][0] < 150])
    share, _ = pck(rows.reshape(-1, J, 3)[..., :2], joints[..., :2], joints[..., 2], np.full(len(joints), 100.0), 0.1)
    assert measure(matches, np.ones(40))[3] == pytest.approx(share * 77 / 79, abs=1e-12)  # two persons are missed


def synthetic(quality, images=400, seed=0, shift=0):
    """Matches of one person an image, whose OKS is above the thresholds with probability `quality`."""
    random = np.random.default_rng(seed)
    hit = random.uniform(size=images) < quality
    ids, ones = np.arange(images) + shift, np.ones(images)
    hits = np.repeat(hit[None], 10, axis=0)
    return Matches(
        ids, np.arange(images), hits, np.ones((10, images), bool), ones, hit.astype(float), 4 * hit, 4 * ones
    )


def test_errors_are_those_of_the_binomial():
    """Of persons: that of a paired difference. Of seeds: their spread. Both are added as variances."""
    nothing = synthetic(0.0)
    pairs = [(synthetic(0.3, seed=seed), nothing) for seed in range(4)]
    found = gain(pairs, draws=1000)
    place = MEASURES.index("OKS")
    reported = [halves(one.images)[1] for one, _ in pairs]
    each = [measure(one, half)[place] for (one, _), half in zip(pairs, reported, strict=True)]
    assert found.mean[place] == pytest.approx(np.mean(each), abs=1e-12)
    assert found.seeds[place] == pytest.approx(np.std(each, ddof=1) / 2, abs=1e-12)
    mean = np.mean([one.oks[1::2] for one, _ in pairs], axis=0)  # of every second image, over the seeds
    assert found.persons[place] == pytest.approx(mean.std() / 200**0.5, rel=0.09)
    assert found.error[place] == pytest.approx(np.hypot(found.seeds[place], found.persons[place]), abs=1e-15)
    # Many persons tell an error well, two degrees of freedom badly: 1.96 + .84 errors, 4.30 + 1.06 of Student's t.
    few, none = (Gain(np.ones(4), np.full(4, spread), np.full(4, 2.0)) for spread in (4000.0, 1e-9))
    np.testing.assert_allclose(few.shows(3), 5.364 * few.error, rtol=1e-3)
    np.testing.assert_allclose(none.shows(3), 2.802 * none.error, rtol=1e-3)
    # The same reading twice has no gain and no error; images of other seeds' own count for themselves.
    same = gain([(pairs[0][0], pairs[0][0])], draws=20)
    assert not same.mean.any() and not same.persons.any() and np.isnan(same.seeds).all() and not same.error.any()
    apart = [(synthetic(0.3, seed=seed, shift=1000 * seed), synthetic(0.0, shift=1000 * seed)) for seed in range(4)]
    variance = np.mean([one.oks[1::2].var() / 200 for one, _ in apart]) / 4
    assert gain(apart, draws=1000).persons[place] == pytest.approx(variance**0.5, rel=0.09)


def test_readings_are_chosen_on_the_other_half_within_the_latency(tmp_path):
    """Two steps are better where it is reported, one step where it is chosen; a third reading is too slow."""
    first, second = halves(np.arange(400))
    assert (first + second == 1).all() and first.sum() == 200

    def with_hits(on_first, on_second):
        one = synthetic(0.0)
        hit = np.where(first > 0, on_first, on_second) > 0
        order = np.argsort(~hit, kind="stable")
        return one._replace(image=order, hits=np.repeat(hit[order][None], 10, axis=0), oks=hit.astype(float))

    none = with_hits(0, 0)
    one, two, four = with_hits(1, 0), with_hits(0, 1), with_hits(1, 1)
    slow = Reading("direct", 4)
    runs = {("light_sub", seed): {COARSE: none, ONE: one, TWO: two, slow: four} for seed in (0, 1)}
    runs |= {("plain_sub_time_of_light_sub", 1): {COARSE: two}, ("one_pass_light_sub", 0): {COARSE: none, ONE: two}}
    times = {("light_sub", "direct", k): t for k, t in ((1, 1.2), (2, 1.5), (4, 1.6))}
    times["one_pass_light_sub", "direct", 1] = 1.2
    assert chosen(runs, "light_sub", times, 1.5) == ONE and chosen(runs, "light_sub", times, 1.1) == COARSE
    assert chosen(runs, "plain_sub_time_of_light_sub", times, 1.5) == COARSE
    latencies = [{"variant": name, "timed": update, "K": k, "times": t} for (name, update, k), t in times.items()]
    devices = dict.fromkeys(runs, "cpu")
    refiner, plain = gains_table(runs, devices, latencies, 1.5)
    assert (refiner["control"], plain["control"]) == ("one_pass_light_sub", "plain_sub_time_of_light_sub")
    assert (refiner["its reading"], plain["its reading"]) == ("direct_1", "coarse")
    for row in (refiner, plain):
        assert (row["variant"], row["reading"], row["seeds"], row["persons"]) == ("light_sub", "direct_1", 1, 200)
        assert (row["AP"], row["OKS"]) == pytest.approx((-100, -100)) and row["times"] == 1.2
    assert (
        gain_in_points(plain)["AP"] == "−100.0 ± 0.0 of persons"
        and gain_in_points(plain)["shows"] == ""
        and gain_in_points(plain)["gain"] == "in the same time"
    )
    # What another kind of device trained is not compared.
    elsewhere = devices | {("plain_sub_time_of_light_sub", 1): "gpu"}
    assert gains_table(runs, elsewhere, latencies, 1.5) == [refiner]
    path = str(tmp_path / "persons.npz")
    write_matches(path, runs["light_sub", 0])
    for reading, its in read_matches(path).items():
        for kept, written in zip(its, runs["light_sub", 0][reading], strict=True):
            np.testing.assert_array_equal(kept, written)
