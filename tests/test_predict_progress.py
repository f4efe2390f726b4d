"""A prediction that is stopped keeps what it finished, and goes on; what it says of model, persons and files."""

import errno
import json

import cv2
import numpy as np
import pytest

from dpose_jax import Predictor
from dpose_jax.inference.poses import Poses
from dpose_jax.inference.predict_files import predict
from dpose_jax.inference.video import VideoReader
from dpose_jax.recipe import Recipe
from dpose_jax.visualization import draw

RNG = np.random.default_rng(0)


class Fixed(Predictor):
    """A model without a network: its poses follow from the first pixel and the boxes. It counts its images."""

    def __init__(self, about="nobody", bias=0.0):
        settings = {"loss.diffusion": 0.0, "model.pretrained": "none", "joint_set": "coco"}
        self.recipe, self.joint_set, self.about = Recipe().override(settings), Recipe().joints, about
        self.bias, self.seen = bias, 0

    def fingerprint(self):
        return f"{self.bias}"

    def __call__(self, images, boxes):
        self.seen += len(images)
        return [self.poses_of(image, its) for image, its in zip(images, boxes, strict=True)]

    def poses_of(self, image, boxes):
        count = len(boxes)
        places = boxes[:, None, :2] + boxes[:, None, 2:4] * np.linspace(0.1, 0.9, 17)[:, None]
        scores = np.tile(np.linspace(0.1, 0.95, 17, dtype=np.float32), (count, 1))
        points = places + self.bias + image[0, 0, 0] / 1000
        return Poses(
            points, scores, scores.mean(axis=1), np.zeros((count, 17, 2, 2)), boxes[:, :4], None, self.joint_set
        )


class Sampler:
    settings = ()


Fixed.sampler = Sampler()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(1, 6):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), RNG.integers(0, 256, (50, 40, 3), np.uint8))
    return tmp_path


def stop_at(monkeypatch, call, error):
    """The picture of this number is the first that cannot be written."""
    write, count = draw.write_png, iter(range(1, 100))

    def writing(path, image):
        if next(count) >= call:
            raise error
        write(path, image)

    monkeypatch.setattr(draw, "write_png", writing)


def contents(out):
    return {name: (out / name).read_bytes() for name in ("results.json", "images.json")}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, ""), OSError(errno.EFBIG, ""), KeyboardInterrupt()])
def test_a_stopped_prediction_goes_on(folder, monkeypatch, capsys, error):
    """A full disk or Ctrl-C: the finished images are named and kept, and the rest alone is predicted afterwards."""
    source, out = str(folder / "in"), folder / "out"
    predict(Fixed(), source, str(folder / "whole"))
    with monkeypatch.context() as patched:
        stop_at(patched, 4, error)
        with pytest.raises(type(error)) as raised:
            predict(Fixed(), source, str(out))
    told = f"3 of 5 images are finished and kept in {out}/unfinished.jsonl; the same command goes on from there"
    if isinstance(error, OSError):
        reason = "the disk is full" if error.errno == errno.ENOSPC else "File too large"
        assert str(raised.value) == f"{out}: {reason}; {told}"
    else:
        assert f"stopped: {told}" in capsys.readouterr().err
    assert not (out / "results.json").exists() and len(list((out / "pictures").iterdir())) == 3
    model = Fixed()
    predict(model, source, str(out))
    assert model.seen == 2 and contents(out) == contents(folder / "whole")
    assert "going on after 3 finished images" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["images.json", "pictures", "results.json"]


def stopped(folder, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 4, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            predict(Fixed(), str(folder / "in"), str(folder / "out"))
    return folder / "out" / "unfinished.jsonl"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b'"score": 1'.join(data.rsplit(b'"score": ', 1))]
)
def test_a_line_that_was_cut_or_changed_is_done_again(folder, monkeypatch, damage):
    kept = stopped(folder, monkeypatch)
    kept.write_bytes(damage(kept.read_bytes()))
    model = Fixed()
    predict(model, str(folder / "in"), str(folder / "out"))
    assert model.seen == 3 and len(json.loads((folder / "out" / "results.json").read_text())) == 5


@pytest.mark.parametrize(("change", "seen"), [("model", 5), ("image", 3), ("picture", 3), ("threshold", 5)])
def test_what_differs_is_done_again(folder, monkeypatch, change, seen):
    """Another model or another threshold: all; another image under the name, or its picture removed: that one."""
    stopped(folder, monkeypatch)
    model, options = Fixed(bias=float(change == "model")), {}
    if change == "image":
        cv2.imwrite(str(folder / "in" / "2.png"), np.zeros((60, 70, 3), np.uint8))
    elif change == "picture":
        (folder / "out" / "pictures" / "2.png").unlink()
    elif change == "threshold":
        options["min_joint_score"] = 0.5
    predict(model, str(folder / "in"), str(folder / "out"), **options)
    predict(Fixed(bias=model.bias), str(folder / "in"), str(folder / "whole"), **options)
    assert model.seen == seen and contents(folder / "out") == contents(folder / "whole")


def test_a_stopped_video_is_drawn_anew_from_its_poses(tmp_path, monkeypatch):
    path = str(tmp_path / "walk.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 64))
    for _ in range(6):
        writer.write(cv2.resize(RNG.integers(0, 256, (8, 6, 3), np.uint8), (48, 64)))
    writer.release()
    calls = iter(range(4))

    def full(image, *_, **__):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return image

    with monkeypatch.context() as patched:
        patched.setattr(draw, "draw_pose", full)
        with pytest.raises(OSError, match="the disk is full; 5 of 6 images are finished"):
            predict(Fixed(), path, str(tmp_path / "out"))
    model = Fixed()
    predict(model, path, str(tmp_path / "out"))
    assert model.seen == 1 and len(list(VideoReader(str(tmp_path / "out" / "walk.mp4")))) == 6
    assert [row["image_id"] for row in json.loads((tmp_path / "out" / "results.json").read_text())] == list(range(6))


def test_a_film_that_is_cut_is_no_film(tmp_path, monkeypatch):
    """OpenCV does not say that the disk was full; nothing is left of the film."""
    from dpose_jax.inference.video import write_video

    class Deaf:
        def __init__(self, path):
            pass

        def get(self, _):
            return 2.0

    with pytest.raises(OSError, match="2 of 3 frames could be written"):
        with write_video(str(tmp_path / "a.mp4"), 10) as add:
            for _ in range(3):
                add(np.zeros((48, 64, 3), np.uint8), None)
            monkeypatch.setattr(cv2, "VideoCapture", Deaf)
    assert list(tmp_path.iterdir()) == []


def test_what_is_said(folder, capsys):
    """Which model, that each image was one person and how to give boxes, where all is, and what is not drawn."""
    predict(Fixed(about="the bundled model"), str(folder / "in"), str(folder / "out"))
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "model: the bundled model"
    assert f"{folder}/out: results.json (persons: 5), images.json (images: 5), pictures/" in said.out
    assert "not drawn: 10 of 85 joints, scores below --min_joint_score=0.2; results.json has them" in said.out
    assert "each image was taken for one person as a whole; --detector=fasterrcnn finds" in said.err
    assert "--boxes=FILE gives their boxes" in said.err


def test_that_the_first_of_several_pictures_is_taken_is_said(folder, capsys):
    pages = RNG.integers(0, 256, (2, 50, 40, 3), np.uint8)
    cv2.imwritemulti(str(folder / "in" / "pages.tif"), list(pages))
    predict(Fixed(), str(folder / "in"), str(folder / "out"))
    said = [line for line in capsys.readouterr().err.splitlines() if "several pictures" in line]
    assert said == [f"{folder}/in/pages.tif: holds several pictures, the first is taken"]
    (entry,) = (one for one in json.loads((folder / "out/images.json").read_text()) if one["file_name"] == "pages.tif")
    (row,) = (one for one in json.loads((folder / "out/results.json").read_text()) if one["image_id"] == entry["id"])
    (expected,) = Fixed()([pages[0][..., ::-1]], [np.array([[0.0, 0, 40, 50, 1]])])
    np.testing.assert_allclose(np.reshape(row["keypoints"], (17, 3))[:, :2], expected.keypoints[0], atol=0.01)


def test_joints_below_the_score_are_not_drawn(folder):
    """The picture is that of the joints that are left; with a score of 0 all are there."""
    pixels = cv2.imread(str(folder / "in" / "1.png"))[..., ::-1]
    (poses,) = Fixed()([pixels], [np.array([[0.0, 0, 40, 50, 1]])])
    for least in (0.2, 0.0, 0.99):
        predict(Fixed(), str(folder / "in"), str(folder / "out"), min_joint_score=least)
        shown = poses.keypoint_scores[0] >= least
        want = draw.draw_pose(pixels, poses.keypoints[0], poses.joint_set, shown=shown)
        np.testing.assert_array_equal(cv2.imread(str(folder / "out" / "pictures" / "1.png"))[..., ::-1], want)
        np.testing.assert_array_equal(poses.draw(pixels, min_score=least), want)
    np.testing.assert_array_equal(want, pixels)
