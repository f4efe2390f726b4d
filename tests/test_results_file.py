"""`python -m dpose_jax.evaluation`: files in, report out, and errors that name file and entry."""

import json
import pathlib
import subprocess
import sys

import pytest
from evaluation_cases import ground_truth, jittered, plain_aic

from dpose_jax.evaluation.coco import METRICS, evaluate_results
from dpose_jax.evaluation.results_file import score_files
from dpose_jax.pose.joint_sets import AIC, COCO, CROWDPOSE, get_joint_set

ROOT = pathlib.Path(__file__).parents[1]


def write(folder, **contents):
    """Files NAME.json; returns their paths."""
    paths = []
    for name, content in contents.items():
        path = folder / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        paths.append(str(path))
    return paths


def command(*arguments):
    program = [sys.executable, "-m", "dpose_jax.evaluation", *arguments]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True)


def test_command_line(tmp_path):
    truth = ground_truth(COCO)
    truth["categories"][0]["keypoints"] = list(COCO.joints)
    results = jittered(truth)
    annotations, predictions = write(tmp_path, gt=truth, results=results)
    files = [f"--annotations={annotations}", f"--results={predictions}", f"--out={tmp_path / 'new' / 'out.json'}"]
    done = command("--dataset=coco", *files)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "new" / "out.json").read_text())
    assert {name: report[name] for name in METRICS} == evaluate_results(truth, results, COCO)
    assert set(report) == {*METRICS, "PCK@0.2", "PCK@0.1", "joints", "mean_pose", "protocol"}
    assert set(report["joints"]["left_knee"]) == {"AP", "PCK@0.2", "PCK@0.1"}
    protocol = report["protocol"]
    assert (protocol["area"], protocol["images"], protocol["predicted"]) == ("annotated", 13, len(results))
    assert protocol["persons"] == sum(a["num_keypoints"] > 0 and not a["iscrowd"] for a in truth["annotations"])
    assert len(protocol["results_sha256"]) == 64
    ours, baseline = done.stdout.splitlines()[-2:]
    assert f"{report['AP']:.3f}" in ours and baseline.startswith("mean pose  0.000")
    done = command(*files)
    assert done.returncode == 1 and done.stderr.startswith("error: --dataset or --joint_set is needed")
    pathlib.Path(predictions).write_text(json.dumps(results)[:-9])
    done = command("--dataset=coco", *files)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {predictions}: not JSON, or cut short")
    assert "Traceback" not in done.stderr


def test_ones_own_joints(tmp_path):
    facts = {"joints": ["hand", "head"], "limbs": [[0, 1]], "flip_pairs": [], "sigmas": [0.05, 0.03]}
    truth = ground_truth(COCO)
    for annotation in truth["annotations"]:
        annotation["keypoints"] = annotation["keypoints"][:6]
        annotation["num_keypoints"] = sum(v > 0 for v in annotation["keypoints"][2::3])
    results = jittered(truth)
    annotations, predictions, own = write(tmp_path, gt=truth, results=results, own=facts)
    joint_set = get_joint_set(own)
    report = score_files(annotations, predictions, joint_set, use_area=True)
    assert report["AP"] == evaluate_results(truth, results, joint_set)["AP"] > 0
    assert list(report["joints"]) == ["hand", "head"]


def native(truth):
    """AI Challenger's own files of a ground truth: flags the other way round, corners, and the file's name as id."""
    flags, images = {2: 1, 1: 2, 0: 3}, []
    for image in truth["images"]:
        people = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        corners = {
            f"human{a['id']}": [*a["bbox"][:2], *(a["bbox"][i] + a["bbox"][i + 2] for i in (0, 1))] for a in people
        }
        joints = {
            f"human{a['id']}": [flags[v] if k % 3 == 2 else v for k, v in enumerate(a["keypoints"])] for a in people
        }
        name = f"picture{image['id']}"
        images.append({"image_id": name, "human_annotations": corners, "keypoint_annotations": joints})
    return images


def test_ai_challengers_own_files_give_what_their_conversion_gives(tmp_path):
    truth = ground_truth(AIC)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    for image in truth["images"]:
        image["file_name"] = f"picture{image['id']}.jpg"
    results = [{**r, "score": 1.0} for r in jittered(truth, amount=9)]
    submission = [
        {
            "image_id": f"picture{image['id']}",
            "keypoint_annotations": {
                f"human{i}": r["keypoints"] for i, r in enumerate(results) if r["image_id"] == image["id"]
            },
        }
        for image in truth["images"]
    ]
    paths = write(tmp_path, coco=truth, coco_results=results, own=native(truth), own_results=submission)
    want = score_files(paths[0], paths[1], AIC, use_area=False)
    assert want["AIC"] == pytest.approx(plain_aic(truth, results, AIC.sigmas), abs=1e-12)
    assert want["protocol"]["area"] == "0.53 w h of the box" and 0 < want["AIC"] < want["AR50"]
    for annotations, predictions in ((paths[2], paths[3]), (paths[0], paths[3])):
        got = score_files(annotations, predictions, AIC, use_area=False)
        assert got["joints"] == want["joints"]
        metrics = {name: value for name, value in want.items() if name not in ("joints", "mean_pose", "protocol")}
        assert {name: got[name] for name in metrics} == pytest.approx(metrics, abs=1e-9)


def test_a_submission_with_images_that_the_reference_lacks_is_scored_without_them(tmp_path, capsys):
    """As the organisers' script does: their own example pair has three such entries, and scores .99674031."""
    truth = native(ground_truth(AIC))
    submission = [{key: entry[key] for key in ("image_id", "keypoint_annotations")} for entry in truth]
    paths = write(tmp_path, own=truth, results=submission, more=[{**submission[0], "image_id": "gone"}, *submission])
    report = score_files(paths[0], paths[2], AIC, use_area=False)
    assert f"{paths[2]}: unknown_image: 1 left out, such as 'gone'\n" in capsys.readouterr().out
    assert report["protocol"]["left_out"] == {"unknown_image": 1}
    assert report["AIC"] == score_files(paths[0], paths[1], AIC, use_area=False)["AIC"] > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda truth, results: (json.dumps(truth)[:-5], results), r"gt\.json: not JSON, or cut short"),
        (lambda truth, results: (results, results), r"gt\.json: must be an object with the lists images"),
        (lambda truth, results: (truth, truth), r"results\.json: must be a list, as COCO's result files, got dict"),
        (lambda truth, results: (truth, results[:2] + [5]), r"results\.json: result 2: must be an object, got 5"),
        (
            lambda truth, results: (truth, [{**results[0], "keypoints": [float("nan")] * 51}]),
            r"results\.json: result 0: .*finite numbers, got nan",
        ),
        (
            lambda truth, results: (truth, [results[0], {**results[0], "keypoints": [1.0] * 42}]),
            r"results\.json: result 1: .*keypoints must be 51 numbers for 'coco', got 42",
        ),
        (
            lambda truth, results: (ground_truth(CROWDPOSE), results),
            r"gt\.json: annotation 0: .*keypoints must be 51 numbers for 'coco', got 42",
        ),
        (
            lambda truth, results: ({**truth, "categories": [{"id": 1, "keypoints": ["a"]}]}, results),
            r"gt\.json: joint set 'coco' does not fit: it has 17 joints, the annotations have 1",
        ),
    ],
)
def test_errors_name_file_and_entry(change, message, tmp_path):
    truth = ground_truth(COCO)
    contents = change(truth, jittered(truth))
    paths = write(tmp_path, gt=contents[0], results=contents[1])
    with pytest.raises(ValueError, match=message):
        score_files(*paths, COCO, use_area=True)


def test_missing_file_and_empty_results(tmp_path):
    annotations, empty = write(tmp_path, gt=ground_truth(COCO), results=[])
    assert score_files(annotations, empty, COCO, use_area=True)["AP"] == 0
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        score_files(annotations, str(tmp_path / "none.json"), COCO, use_area=True)


@pytest.mark.parametrize("keypoints", [None, [], [0, 0, 0], "none", [[0, 0, 0]] * 17])
def test_a_crowd_without_a_list_of_joints_is_scored_as_one_without_joints(tmp_path, keypoints):
    truth = ground_truth(COCO)
    results = jittered(truth)
    crowd = next(entry for entry in truth["annotations"] if entry["iscrowd"])
    scored = []
    for its in ([0] * 51, keypoints):
        crowd["keypoints"] = its
        scored.append(score_files(*write(tmp_path, gt=truth, results=results), COCO, use_area=True))
    want, got = scored
    assert {name: got[name] for name in METRICS} == {name: want[name] for name in METRICS}
    assert got["joints"] == want["joints"] and got["protocol"]["left_out"] == {}
