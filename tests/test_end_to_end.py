import hashlib
import json
import os
import pathlib
import subprocess
import sys

import commands
import cv2
import numpy as np
import pytest

from dpose_jax.data.datasets import make_source
from dpose_jax.data.sample import BadRecordError
from dpose_jax.data.synthetic.dataset import SyntheticSource
from dpose_jax.evaluation.evaluator import evaluate
from dpose_jax.evaluation.predict_split import predict_split
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.training import loop, memory
from dpose_jax.training.dry_run import dry_run
from dpose_jax.training.loop import train

ROOT = pathlib.Path(__file__).parents[1]
PEOPLE = 12


def command(script, *arguments):
    """What a user sees: status, stdout and stderr."""
    return subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True)


def read_lines(workdir):
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def report(trained):
    config, workdir = trained
    return evaluate(config, workdir)


@pytest.fixture
def folder(tmp_path, miniature):
    """A COCO-format folder of drawn people, and overrides that train on it."""
    source = SyntheticSource(PEOPLE, COCO, difficulty=0.0, seed=0, size=(96, 96))
    root = tmp_path / "people"
    (root / "images").mkdir(parents=True)
    truth = source.ground_truth()
    for index, image in enumerate(truth["images"]):
        image["file_name"] = f"{image['id']}.png"
        cv2.imwrite(str(root / "images" / image["file_name"]), source.read_image(index)[..., ::-1])
    (root / "truth.json").write_text(json.dumps(truth))
    fields = {"data__source": "folder", "data__root": str(root)}
    for split in ("train", "val"):
        fields |= {f"data__{split}_annotations": "truth.json", f"data__{split}_images": "images"}
    return root, fields


def test_training_writes_metrics_and_checkpoints(trained):
    config, workdir = trained
    lines = read_lines(workdir)
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        figures = ("loss", "loss_diffusion", "loss_coarse", "learning_rate", "grad_norm", "examples_per_second")
        assert all(np.isfinite(line[name]) and line[name] > 0 for name in figures)
        assert line["loss"] == pytest.approx(line["loss_diffusion"] + line["loss_coarse"], rel=1e-5)
        assert line["bad_records"] == 0
    assert sorted(os.listdir(os.path.join(workdir, "checkpoints"))) == ["2", "4"]
    assert json.load(open(os.path.join(workdir, "config.json")))["train"]["steps"] == config.train.steps
    assert os.listdir(os.path.join(workdir, "tensorboard"))


def test_evaluation_has_the_schema(trained, report, miniature):
    workdir = pathlib.Path(trained[1])
    assert json.loads((workdir / "eval.json").read_text()) == report
    assert set(report) == {"protocol", "results", "joints", "mean_pose", "best"}
    assert set(report["joints"]["steps_1"]["nose"]) == {"AP", "PCK@0.2", "PCK@0.1"}
    assert list(report["results"]) == ["coarse", "steps_1", "steps_2"]
    for result in report["results"].values():
        assert {"AP", "AP50", "AP75", "AR", "PCK@0.2"} <= set(result)
        assert all(value is None or 0 <= value <= 1 for value in result.values())
    best = report["best"]
    assert set(best) == {"name", "AP", "AP50", "PCK@0.2"}
    assert best["AP"] == max(result["AP"] for result in report["results"].values())
    assert best["PCK@0.2"] == report["results"][best["name"]]["PCK@0.2"]
    protocol = report["protocol"]
    assert (protocol["step"], protocol["ema"], protocol["flip"], protocol["boxes"]) == (4, True, True, "gt")
    assert protocol["training_device"] == protocol["device"] == "cpu"
    assert protocol["codec"].startswith("unbiased+dark")
    assert protocol["masks"] == "keypoints 6.0, skeleton 3.0, softness 0.0"
    assert (protocol["data"], protocol["steps"], protocol["skipped"]) == ("synthetic", [1, 2], 0)
    assert {"eta", "update_rule", "seed", "flip_shift", "images", "persons", "soft_nms", "device"} <= set(protocol)


def test_evaluation_writes_results_and_pictures(trained, report):
    workdir = pathlib.Path(trained[1])
    for name in ("coarse", "steps_1", "steps_2"):
        rows = json.loads((workdir / "results" / f"val_gt_{name}.json").read_text())
        assert rows and all(len(row["keypoints"]) == 51 and row["category_id"] == 1 for row in rows)
    for name in ("predictions", "heatmaps", "denoising"):
        picture = cv2.imread(str(workdir / "pictures" / f"{name}.png"))
        assert picture is not None and picture.std() > 5


def test_evaluation_again_gives_the_same_figures(trained, report, miniature, tmp_path, capsys):
    """Also into another file, and as a table."""
    out = str(tmp_path / "report.json")
    again = evaluate(miniature(eval__pictures=0), trained[1], out)
    assert json.load(open(out)) == again
    for name, result in report["results"].items():
        assert again["results"][name] == pytest.approx(result, abs=1e-6)
    table = capsys.readouterr().out
    assert all(name in table for name in ("coarse", "steps_1", "steps_2", "AP50", "PCK@0.2"))


def test_an_evaluation_does_not_read_the_optimizer(trained, report, miniature, tmp_path):
    """A recipe with other `optim` and `train` evaluates the same workdir, but does not train on it."""
    others = {"optim__clip_norm": 0.0, "optim__ema": 0.0, "optim__weight_decay": 0.0, "optim__learning_rate": 1.0}
    recipe = miniature(**others, train__batch_size=16, train__fsdp=True, eval__pictures=0)
    again = evaluate(recipe, trained[1], str(tmp_path / "report.json"))
    assert again["protocol"] == report["protocol"]
    for name, result in report["results"].items():
        assert again["results"][name] == pytest.approx(result, abs=1e-6)
    with pytest.raises(ValueError, match=r"(?s)another model, optimizer or seed.*clip_norm: on there.*ema: on there"):
        train(recipe, trained[1])


def test_a_workdir_alone_is_evaluated(trained, report, miniature, tmp_path):
    """By its own recipe with the values of the command line."""
    out = tmp_path / "report.json"
    done = commands.command(
        "eval.py", f"--workdir={trained[1]}", f"--out={out}", "--config.eval.pictures=0", "--config.sampler.steps=(2,)"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert list(found["results"]) == ["coarse", "steps_2"]
    assert found["results"]["steps_2"] == pytest.approx(report["results"]["steps_2"], abs=1e-6)
    for arguments, message in (
        (
            [f"--workdir={trained[1]}", "--config.eval.flp=False"],
            "error: unknown config field 'flp'; did you mean \"flip\"",
        ),
        (["--workdir="], "error: --workdir='': must name a file, folder or bucket"),
        ([f"--workdir={trained[1]}", "--config.model.width=16"], "error: workdir"),
    ):
        done = commands.command("eval.py", *arguments)
        assert done.returncode == 1 and done.stderr.startswith(message) and "Traceback" not in done.stderr


def test_command_lines(trained, report, tmp_path):
    """train.py finishes a finished run, eval.py gives the report of the function; neither alarms anybody."""
    arguments = ["--config=tests/miniature.py", f"--workdir={trained[1]}"]
    done = command("train.py", *arguments)
    assert done.returncode == 0 and "resuming at step 4 of 4" in done.stdout, done.stderr
    out = tmp_path / "report.json"
    done = command("eval.py", *arguments, "--config.eval.pictures=0", "--config.data.workers=1", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["results"]["coarse"] == pytest.approx(report["results"]["coarse"], abs=1e-6)
    assert "Traceback" not in done.stderr and "leaked" not in done.stderr


def test_dry_run_says_what_the_run_needs_and_writes_nothing(miniature, tmp_path, capsys):
    """Frozen and learning; without attention, which takes long to compile."""
    workdir = tmp_path / "none"
    plain = {"model__spatial_attention": False, "model__channel_attention": False}
    dry_run(miniature(**plain, optim__freeze_backbone_steps=2), str(workdir))
    assert not workdir.exists()
    said = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert {"train data", "val data", "devices", "parameters", "memory", "speed", "whole run"} <= set(said)
    # What the backward pass needs is part of what the compiled step does.
    activations, memory = (float(said[name].split()[0]) for name in ("activations", "memory"))
    assert 0 < activations < memory < 30 * activations
    assert "M" in said["parameters"] and "examples/s" in said["speed"] and "HRNet stays" in said["held"]
    persons = len(make_source(miniature(), "train", training=True))
    assert f"4 steps, {4 * 8 / persons:.4g} epochs of {persons} persons" in said["whole run"]
    assert said["loss"].endswith(" after 8 steps")  # four of each phase
    assert 0 < float(said["loss"].split()[0]) < np.inf


def test_dry_run_of_what_cannot_fit_reads_no_batch(miniature, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 1)
    monkeypatch.setattr(loop.Run, "next_batch", lambda self: pytest.fail("read"))
    with pytest.raises(ValueError, match=r"a step needs .*: lower train\.batch_size=8"):
        dry_run(miniature(), str(tmp_path / "none"))


def test_images_without_annotations_give_a_results_file(folder, trained, miniature, tmp_path, capsys):
    """As COCO's test-dev: a list of images, whose categories name no joints, and a detector's boxes."""
    root, fields = folder
    truth = json.loads((root / "truth.json").read_text())
    boxes = [
        {"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 0.9 - 0.01 * i}
        for i, a in enumerate(truth["annotations"])
    ]
    (root / "boxes.json").write_text(json.dumps(boxes))
    listed = {"info": {}, "images": truth["images"], "categories": [{"id": 1, "name": "person"}, {"id": 2}]}
    (root / "list.json").write_text(json.dumps(listed))
    fields |= {"data__val_annotations": "list.json", "data__val_detections": "boxes.json", "eval__boxes": "detections"}
    report = evaluate(miniature(**fields), trained[1], str(tmp_path / "report.json"))
    assert all(value is None for result in report["results"].values() for value in result.values())
    protocol = report["protocol"]
    assert (protocol["persons"], protocol["images"], protocol["data"]) == (PEOPLE, PEOPLE, "list.json")
    assert protocol["detections_sha256"] == hashlib.sha256((root / "boxes.json").read_bytes()).hexdigest()
    assert "steps_2" in capsys.readouterr().out
    for name in report["results"]:
        rows = json.loads((tmp_path / "report" / "results" / f"val_detections_{name}.json").read_text())
        assert {row["image_id"] for row in rows} == {image["id"] for image in truth["images"]}
        for row in rows:
            assert list(row) == ["image_id", "category_id", "keypoints", "score"]
            assert type(row["image_id"]) is int and type(row["score"]) is float and len(row["keypoints"]) == 51
    with pytest.raises(ValueError, match=r"list\.json: must be an object with the lists"):
        evaluate(miniature(**fields | {"eval__boxes": "gt"}), trained[1], str(tmp_path / "report.json"))


def test_what_a_command_line_lacks_or_has_too_much_is_one_line():
    done = command("eval.py")
    assert done.stderr.splitlines()[0] == "error: give one of --workdir, --model and --weights"
    done = command("predict.py", "--out=o", "--input", "a.png", "b.png")
    assert (
        done.stderr
        == "error: unknown argument 'b.png': values follow their flag as --flag=value, one each; see --help\n"
    )


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_unknown_field_on_the_command_line(script, tmp_path):
    done = command(script, "--config=configs/base.py", f"--workdir={tmp_path}", "--config.optim.learnig_rate=1.0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown config field 'learnig_rate'") and "learning_rate" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_folder_on_the_command_line(tmp_path):
    arguments = ["--config=configs/base.py", f"--workdir={tmp_path / 'w'}", f"--config.data.root={tmp_path / 'none'}"]
    done = command("train.py", *arguments, "--config.model.backbone=tiny")
    assert done.returncode == 1 and not (tmp_path / "w").exists()
    assert done.stderr.splitlines()[0] == f"error: data.root='{tmp_path / 'none'}': no such folder"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("run", [train, dry_run, evaluate])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"joint_set": "crowdpose"}, r"(?s)crowdpose.*joint"),
        ({"model__backbone": "resnet"}, r"model\.backbone='resnet'"),
    ],
)
def test_what_a_recipe_alone_does_not_show_stops_before_a_compile(
    run, fields, message, miniature, trained, monkeypatch
):
    monkeypatch.setattr("jax.jit", lambda *a, **k: pytest.fail("compiled before the check"))
    with pytest.raises(ValueError, match=message):
        run(miniature(**fields), trained[1])


def test_joint_set_that_does_not_fit_the_annotations(folder, miniature, tmp_path):
    root, fields = folder
    with pytest.raises(ValueError, match=r"(?s)truth\.json.*crowdpose"):
        train(miniature(**fields, joint_set="crowdpose"), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_missing_and_empty_data(miniature, folder, tmp_path):
    root, fields = folder
    truth = (root / "truth.json").read_bytes()
    (root / "truth.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"truth\.json"):
        train(miniature(**fields), str(tmp_path / "w"))
    (root / "truth.json").write_bytes(truth)
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"images: the image folder is empty"):
        train(miniature(**fields), str(tmp_path / "w"))
    (root / "images").rmdir()
    with pytest.raises(FileNotFoundError, match=r"images"):
        train(miniature(**fields), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("run", [train, dry_run, evaluate])
def test_workdir_of_another_model(run, trained, miniature):
    with pytest.raises(ValueError, match=r"(?s)holds the checkpoint of another model.*model\.width: 8 there, 16 in"):
        run(miniature(model__width=16), trained[1])


def test_evaluation_without_a_checkpoint(miniature, tmp_path):
    with pytest.raises(ValueError, match=r"--out='report': must end in \.json"):
        evaluate(miniature(), str(tmp_path / "none"), "report")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        evaluate(miniature(), str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        evaluate(miniature(), str(tmp_path / "empty"))
    assert files(tmp_path) == []


def test_broken_images_are_counted_up_to_their_share(folder, miniature, tmp_path):
    """One of twelve: left out and counted; two of twelve: more than the tenth that is allowed."""
    root, fields = folder
    fields |= {"data__max_bad_share": 0.1}
    images = sorted((root / "images").iterdir())
    images[0].write_bytes(b"no image")
    train(miniature(**fields), str(tmp_path / "one"))
    assert read_lines(tmp_path / "one")[-1]["bad_records"] == 1
    report = evaluate(miniature(**fields, eval__pictures=0), str(tmp_path / "one"))
    assert report["protocol"]["persons"] == PEOPLE and report["protocol"]["skipped"] == 1
    source = make_source(miniature(**fields), "val", training=False)
    predict = lambda crops, ids: ids  # noqa: E731
    assert len(predict_split(miniature(**fields), source, predict, batch_size=8).index) == PEOPLE - 1
    images[5].write_bytes(images[5].read_bytes()[:100])
    for run in (
        lambda: train(miniature(**fields), str(tmp_path / "two")),
        lambda: evaluate(miniature(**fields), str(tmp_path / "one")),
        lambda: predict_split(miniature(**fields), source, predict, batch_size=8),
    ):
        with pytest.raises(
            ValueError, match=r"of 12 records .* 2 unreadable, more than data\.max_bad_share=0\.1; .*png"
        ):
            run()


def test_all_images_broken(folder, miniature, tmp_path):
    root, fields = folder
    for path in (root / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(BadRecordError, match=r"12 unreadable records in a row .*\.png"):
        train(miniature(**fields), str(tmp_path / "w"))
