"""predict.py and what is behind it, on good and on bad input."""

import json

import cv2
import numpy as np
import pytest
from commands import command

from dpose_jax import Predictor
from dpose_jax.data.datasets import make_source
from dpose_jax.evaluation.oks import oks_nms
from dpose_jax.inference.boxes import BoxFile, checked_boxes
from dpose_jax.inference.image_ids import number_images
from dpose_jax.inference.images import load_image
from dpose_jax.inference.predict_files import PartlyDone, predict
from dpose_jax.inference.video import VideoReader
from dpose_jax.models import pose_sampler

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.from_workdir(trained[1], batch_sizes=(2, 32))


@pytest.fixture
def folder(tmp_path):
    """Three images of noise, 1.png to 3.png."""
    for number in (1, 2, 3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), RNG.integers(0, 256, (50, 40 + number, 3), np.uint8))
    return tmp_path


def write_boxes(path, rows):
    entries = [{"image_id": i, "category_id": 1, "bbox": box, "score": score} for i, box, score in rows]
    path.write_text(json.dumps(entries))
    return str(path)


def read(out):
    results, images = (json.loads((out / f"{name}.json").read_text()) for name in ("results", "images"))
    return results, images


def whole(out):
    """No file that is not finished, and pictures that decode; their names."""
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    pictures = sorted(out.rglob("*.png"))
    assert all(cv2.imread(str(path)) is not None for path in pictures)
    return [str(path.relative_to(out)) for path in pictures]


def test_results_are_those_of_the_evaluation(trained, predictor, tmp_path):
    """Images on disk and boxes of a COCO file give what the evaluation's own results hold, suppression included."""
    source = make_source(trained[0], "val", training=False)
    truth = source.ground_truth()
    (tmp_path / "in").mkdir()
    for image in truth["images"]:
        image["file_name"] = f"people/person {image['id']}.png"
        pixels = next(source.read_image(i) for i in range(len(source)) if source[i].image_id == image["id"])
        cv2.imwrite(str(tmp_path / "in" / f"person {image['id']}.png"), pixels[..., ::-1])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    predict(
        predictor, str(tmp_path / "in"), str(tmp_path / "out"), boxes=BoxFile(str(tmp_path / "truth.json")), strips=True
    )
    results, images = read(tmp_path / "out")
    assert {image["id"] for image in images} == {image["id"] for image in truth["images"]}
    rows = []
    for image in truth["images"]:
        its = [i for i in range(len(source)) if source[i].image_id == image["id"]]
        poses = predictor(source.read_image(its[0]), [source[i].bbox for i in its])
        joints = np.concatenate([poses.keypoints, poses.keypoint_scores[..., None]], axis=-1).reshape(len(its), -1)
        areas = [max(w, h) ** 2 * predictor.recipe.crop.padding**2 for w, h in poses.boxes[:, 2:]]
        one = [
            {"image_id": image["id"], "keypoints": k.tolist(), "score": s, "area": a}
            for k, s, a in zip(joints, poses.scores, areas, strict=True)
        ]
        rows += oks_nms(one, poses.joint_set.sigmas, predictor.recipe.eval.nms)
    key = lambda row: (row["image_id"], row["score"])  # noqa: E731
    assert len(results) == len(rows)
    for row, expected in zip(sorted(results, key=key), sorted(rows, key=key), strict=True):
        assert row["category_id"] == 1
        np.testing.assert_allclose(row["keypoints"], expected["keypoints"], atol=5e-3)
    names = [f"person {image['id']}.png" for image in sorted(truth["images"], key=lambda i: i["file_name"])]
    assert whole(tmp_path / "out") == [f"{kind}/{name}" for kind in ("denoising", "pictures") for name in names]


def test_bad_boxes_are_named_and_the_rest_is_done(predictor, folder, tmp_path, capsys):
    rows = [(1, [5, 5, 20, 30], 0.9), (1, [500, 5, 9, 9], 0.9), (1, [1, 1, 0, 9], 0.9), (2, [0, 0, 30, 30], 0.1)]
    rows += [(3, [2, 2, 20, None], 0.5), (3, [0, 0, 30, 30], 0.8)]
    boxes = write_boxes(tmp_path / "boxes.json", rows)
    with pytest.raises(PartlyDone, match="problems: 3;"):
        predict(predictor, str(folder), str(tmp_path / "out"), boxes=BoxFile(boxes, 0.2))
    told = capsys.readouterr().err
    for text in (
        "1 (image 1): box 1 [500.0, 5.0, 9.0, 9.0]: lies outside of the image, 41 x 50",
        "1 (image 1): box 2 [1.0, 1.0, 0.0, 9.0]: width and height must be positive",
        "3 (image 3): box 0 [2.0, 2.0, 20.0, nan]: not finite",
    ):
        assert f"problem: {text}" in told
    results, images = read(tmp_path / "out")
    assert [row["image_id"] for row in results] == [1, 3] and len(images) == 3
    assert whole(tmp_path / "out") == [f"pictures/{n}.png" for n in (1, 2, 3)]


def test_bad_images_are_named_and_the_rest_is_done(predictor, folder, capsys):
    """No image, a cut one, an empty file; grey, transparent, of one pixel and with a capital suffix are fine."""
    (folder / "2.png").write_bytes(b"no image")
    (folder / "cut.jpg").write_bytes(cv2.imencode(".jpg", np.full((64, 64, 3), 90, np.uint8))[1].tobytes()[:200])
    (folder / "empty.webp").write_bytes(b"")
    cv2.imwrite(str(folder / "grey.PNG"), RNG.integers(0, 256, (30, 30), np.uint8))
    cv2.imwrite(str(folder / "transparent.png"), RNG.integers(0, 256, (30, 30, 4), np.uint8))
    cv2.imwrite(str(folder / "pixel.png"), np.zeros((1, 1, 3), np.uint8))
    out = folder / "out"
    with pytest.raises(PartlyDone, match="problems: 3;"):
        predict(predictor, str(folder), str(out))
    told = capsys.readouterr().err
    for name, text in [("2.png", "cannot be decoded"), ("cut.jpg", "cut short"), ("empty.webp", "is empty")]:
        assert any(name in line and text in line for line in told.splitlines()), name
    results, images = read(out)
    assert [image["file_name"] for image in images] == ["1.png", "3.png", "grey.PNG", "pixel.png", "transparent.png"]
    assert len(whole(out)) == 5 and np.isfinite([row["keypoints"] for row in results]).all()


def write_video(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 64))
    for _ in range(frames):
        writer.write(cv2.resize(RNG.integers(0, 256, (8, 6, 3), np.uint8), (48, 64)))
    writer.release()


def test_video(predictor, tmp_path):
    write_video(tmp_path / "walk.avi", 6)
    boxes = write_boxes(tmp_path / "boxes.json", [(frame, [4, 4, 30, 40], 1.0) for frame in (0, 1, 5)])
    predict(predictor, str(tmp_path / "walk.avi"), str(tmp_path / "out"), boxes=BoxFile(boxes))
    results, images = read(tmp_path / "out")
    assert [row["image_id"] for row in results] == [0, 1, 5] and [image["id"] for image in images] == list(range(6))
    drawn = VideoReader(str(tmp_path / "out" / "walk.mp4"))
    assert (len(list(drawn)), drawn.fps) == (6, 10)
    assert whole(tmp_path / "out") == []


def test_a_video_with_a_name_too_long_for_a_film_has_results(predictor, tmp_path, capsys):
    write_video(tmp_path / "walk.avi", 3)
    (tmp_path / "walk.avi").rename(tmp_path / f"{'x' * 253}.v")
    with pytest.raises(PartlyDone):
        predict(predictor, str(tmp_path / f"{'x' * 253}.v"), str(tmp_path / "out"))
    assert (
        len(read(tmp_path / "out")[1]) == 3
        and "xx.mp4: not drawn: the file name is too long" in capsys.readouterr().err
    )


def test_video_that_ends_early(predictor, tmp_path, capsys):
    write_video(tmp_path / "walk.avi", 30)
    data = (tmp_path / "walk.avi").read_bytes()
    (tmp_path / "walk.avi").write_bytes(data[: len(data) // 2])
    with pytest.raises(PartlyDone, match="problems: 1;"):
        predict(predictor, str(tmp_path / "walk.avi"), str(tmp_path / "out"))
    assert "ends early" in capsys.readouterr().err
    _, images = read(tmp_path / "out")
    assert 0 < len(images) < 30
    assert len(list(VideoReader(str(tmp_path / "out" / "walk.mp4")))) == len(images)
    assert whole(tmp_path / "out") == []


def test_a_stopped_run_leaves_no_half_video(predictor, tmp_path, monkeypatch):
    write_video(tmp_path / "walk.avi", 20)
    calls = iter(range(2))

    def stop(image, keypoints, joint_set, shown):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return image

    monkeypatch.setattr("dpose_jax.visualization.draw.draw_pose", stop)
    with pytest.raises(KeyboardInterrupt):
        predict(predictor, str(tmp_path / "walk.avi"), str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished.jsonl"]


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (lambda path: None, {"source": "none"}, "no such file or folder"),
        (lambda path: (path / "in").mkdir(), {}, "in: holds no image"),
        (lambda path: (path / "in.mov").write_text("text"), {"source": "in.mov"}, "nor a video"),
        (lambda path: None, {"boxes": "none.json"}, "none.json"),
        (lambda path: (path / "b.json").write_text("[{]"), {"boxes": "b.json"}, "b.json: not JSON"),
        (lambda path: (path / "b.json").write_text('{"a": 1}'), {"boxes": "b.json"}, "b.json: must be a list"),
        (lambda path: write_boxes(path / "b.json", []), {"boxes": "b.json"}, "has no box for any of the images"),
        (
            lambda path: write_boxes(path / "b.json", [(7, [0, 0, 1, 1], 1)]),
            {"boxes": "b.json"},
            "closest: '7'; list images",
        ),
        (lambda path: None, {"boxes": "b.json", "min_score": 2.0}, "min_box_score=2.0"),
        (lambda path: (path / "out").write_text("text"), {}, "is a file"),
        (lambda path: write_video(path / "v.avi", 2), {"source": "v.avi", "strips": True}, "trajectory: draws images"),
        (
            lambda path: (path / "b.json").write_text('{"annotations": [], "images": null}'),
            {"boxes": "b.json"},
            "lists",
        ),
    ],
)
def test_what_cannot_be_used_stops_before_any_work(predictor, folder, prepare, options, message, monkeypatch):
    monkeypatch.setattr(Predictor, "__call__", lambda *_: pytest.fail("predicted"))
    prepare(folder)
    source = folder / "in" if (folder / "in").is_dir() else folder / options.pop("source", "")
    boxes, *score = options.pop("boxes", None), *filter(None, [options.pop("min_score", None)])
    with pytest.raises((ValueError, OSError), match=message):
        file = BoxFile(str(folder / boxes), *score) if boxes else None
        predict(predictor, str(source), str(folder / "out"), boxes=file, **options)
    assert not (folder / "out").is_dir()


@pytest.mark.parametrize("kind", ["pictures", "denoising"])
def test_drawings_never_replace_their_images(predictor, folder, kind):
    source = folder / kind
    source.mkdir()
    (folder / "1.png").rename(source / "1.png")
    before = (source / "1.png").read_bytes()
    link = folder / "link"
    link.symlink_to(folder)
    with pytest.raises(ValueError, match=rf"out: would replace the input .*{kind}/1.png"):
        predict(predictor, str(source), str(link))
    assert (source / "1.png").read_bytes() == before and not (folder / "results.json").exists()


def test_a_film_never_replaces_its_video(predictor, tmp_path):
    write_video(tmp_path / "walk.avi", 2)
    (tmp_path / "walk.avi").rename(tmp_path / "walk.mp4")
    before = (tmp_path / "walk.mp4").read_bytes()
    with pytest.raises(ValueError, match="out: would replace the input .*walk.mp4"):
        predict(predictor, str(tmp_path / "walk.mp4"), str(tmp_path))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("walk.mp4", before)]


def test_command_line(trained, folder):
    """A problem in one image: the message, the rest done, status 1."""
    (folder / "2.png").write_bytes(b"no image")
    out = folder / "out"
    flags = [f"--workdir={trained[1]}", f"--input={folder}", f"--out={out}", "--steps=2", "--trajectory", "--noflip"]
    done = command("predict.py", *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "2.png: cannot be decoded" in done.stderr and "error: problems: 1; they are listed above" in done.stderr
    assert whole(out) == ["denoising/1.png", "denoising/3.png", "pictures/1.png", "pictures/3.png"]
    assert len(read(out)[0]) == 2


def test_model_and_workdir_exclude_each_other(tmp_path):
    done = command("predict.py", f"--input={tmp_path}", f"--out={tmp_path / 'o'}", "--model=a", "--workdir=b")
    assert done.returncode == 1 and done.stderr.startswith("error: give one of --workdir=")


def test_numbers_of_images():
    assert number_images(["000000000139.jpg", "7.png"]) == [139, 7]
    assert number_images(["COCO_val2014_000000000139.jpg", "cover.jpg", "sub/7.png"]) == [139, 140, 7]
    assert number_images(["a.jpg", "1" * 30 + ".jpg", "frame_0001.jpg"]) == [1, 2, 3]
    assert number_images(["07.jpg", "7.png"]) == [1, 2]


def test_box_file_of_annotations(tmp_path):
    """Ids by file name; crowds, other categories and low scores left out; images that it does not know get new ids."""
    box = {"bbox": [1, 2, 3, 4], "image_id": 5, "category_id": 9}
    content = {
        "images": [
            {"id": 5, "file_name": "set/a.jpg"},
            {"id": 1, "file_name": "b.jpg"},
            {"id": "seven", "file_name": "d.jpg"},
            {"id": 8, "file_name": "set/e.jpg"},
            {"id": 9, "file_name": "other/e.jpg"},
        ],
        "categories": [{"id": 9, "name": "person"}],
        "annotations": [box, box | {"iscrowd": 1}, box | {"category_id": 1}, {"bbox": [1, 2]}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    file = BoxFile(str(path))
    assert file.of(5) == [[1, 2, 3, 4, 1.0]] and file.of(1) == []
    assert [text.split(":")[1].split(" has")[0] for text in file.problems] == [" image 2", " entry 3"]
    assert file.image_ids(["a.jpg", "c.jpg", "b.jpg"]) == [5, 10, 1]
    with pytest.raises(ValueError, match=r"truth.json: lists 'e.jpg' under the ids \[8, 9\]"):
        file.image_ids(["a.jpg", "e.jpg"])


def test_boxes_are_clipped():
    boxes, problems = checked_boxes([[-5, 2, 10, 50], [0, 0, 20, 30]], (30, 20))
    assert boxes.tolist() == [[0, 2, 5, 28, 1], [0, 0, 20, 30, 1]] and problems == ["", ""]
    assert checked_boxes([], (30, 20))[0].shape == (0, 5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), r"got \(4, 4, 3\) float64"),
        (np.zeros((4, 4, 2), np.uint8), r"got \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), "got 4 x 0"),
        (np.broadcast_to(np.uint8(0), (1, 32_767, 3)), "got 32767 x 1"),
        (7, "got int"),
    ],
)
def test_arrays_that_are_no_images(image, message):
    with pytest.raises(ValueError, match=message):
        load_image(image)


def test_colours_and_turned_files(tmp_path):
    pixels = RNG.integers(0, 256, (6, 9, 4), np.uint8)
    np.testing.assert_array_equal(load_image(pixels), pixels[..., :3])
    np.testing.assert_array_equal(load_image(pixels[..., 0]), pixels[..., :1].repeat(3, axis=2))
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., 2::-1])
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), pixels[..., :3])


def test_trace_is_the_prediction_without_flip(predictor, folder):
    """The last joints of the trajectory are those of the same run without flip test."""
    image = load_image(folder / "1.png")
    _, trajectory, joints = predictor.trace(image)
    plain = Predictor(predictor.recipe, predictor.variables, flip=False, batch_sizes=(2,))(image)
    to_image = predictor._crops(image, None)[1]
    np.testing.assert_allclose(pose_sampler.to_image_pixels(joints[-1], to_image), plain.keypoints, atol=5e-3)
    np.testing.assert_allclose(trajectory[-1].max(axis=(1, 2)), plain.keypoint_scores, atol=1e-5)


def test_a_turned_photo_is_upright(tmp_path):
    """The orientation that a camera stores is followed, as by a viewer, in a file and in a PIL image."""
    PIL = pytest.importorskip("PIL.Image", reason="pillow writes the EXIF tag")
    image = np.zeros((40, 64, 3), np.uint8)
    image[:16, :, 0] = 240
    exif = PIL.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    path = tmp_path / "turned.jpg"
    PIL.fromarray(image).save(path, exif=exif, quality=95)
    upright = cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE).astype(int)
    for one in (path, PIL.open(path)):
        found = load_image(one)
        assert found.shape == (64, 40, 3) and np.abs(found - upright).mean() < 4
