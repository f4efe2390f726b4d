"""A detector of torchvision as the source of boxes, with random weights that find what a test asks for."""

import builtins
import hashlib
import json
import shutil
import types

import cv2
import numpy as np
import pytest
from commands import command

torch = pytest.importorskip("torch", reason="the optional extra `detector`")
models = pytest.importorskip("torchvision", reason="the optional extra `detector`").models

from dpose_jax import Predictor  # noqa: E402
from dpose_jax.inference.detector import DETECTORS, MAX_SIDE, MODELS, Detector  # noqa: E402
from dpose_jax.inference.predict_files import predict  # noqa: E402
from dpose_jax.inference.video import VideoReader  # noqa: E402
from dpose_jax.models.weights.hub import read as read_weights  # noqa: E402

RNG = np.random.default_rng(0)
SMALL = "ssdlite320_mobilenet_v3_large"
PERSON, BICYCLE = 1, 2


def noise(height, width):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def build(name=SMALL):
    return models.get_model(name, weights=None, weights_backbone=None).eval()


@pytest.fixture(scope="module")
def network():
    """It calls the six boxes of the whole image persons and the 24 of its quarters bicycles, the others nothing."""
    torch.manual_seed(0)
    network = build()
    levels = network.head.classification_head.module_list
    with torch.no_grad():
        for level, category in ((5, PERSON), (4, BICYCLE)):
            levels[level][1].bias.view(6, 91)[:, category] = torch.linspace(6, 11, 6)
    return network


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "weights.pth"
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def detector(weights):
    return Detector(weights, SMALL)


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.from_workdir(trained[1], batch_sizes=(2, 32))


def expected(network, pixels, scale=1.0):
    """The rows of the network's own output, one at a time."""
    with torch.inference_mode():
        (found,) = network([torch.tensor(pixels).permute(2, 0, 1) / 255])
    rows, others = [], 0
    for label, score, (x0, y0, x1, y1) in zip(*(found[k].tolist() for k in ("labels", "scores", "boxes")), strict=True):
        if score >= 0.5 and label == PERSON:
            rows.append([x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale, score])
        others += score >= 0.5 and label == BICYCLE
    assert rows and others
    return sorted(rows, key=lambda row: -row[4])


def test_persons_above_the_score_are_kept(network, detector):
    pixels = noise(90, 120)
    rows = detector.of(7, pixels)
    np.testing.assert_allclose(rows, expected(network, pixels), rtol=1e-4, atol=1e-3)
    assert rows.dtype == np.float64 and len(rows) <= 6


def test_score_is_the_users(weights, network):
    pixels = noise(90, 120)
    scores = [row[4] for row in expected(network, pixels)]
    assert len(scores) > 1
    assert len(Detector(weights, SMALL, min_score=np.mean(scores[:2])).of(0, pixels)) == 1


def test_boxes_are_in_pixels_of_the_image(network, detector):
    """An image above the largest side is shrunk first; its boxes are those of the small one, enlarged."""
    small = np.full((MAX_SIDE // 4, MAX_SIDE // 2, 3), RNG.integers(0, 256, 3), np.uint8)
    large = np.full((MAX_SIDE, 2 * MAX_SIDE, 3), small[0, 0], np.uint8)
    np.testing.assert_allclose(detector.of(0, large), expected(network, small, scale=4), rtol=1e-3, atol=0.05)


def test_unusable_finds_are_left_out(detector, monkeypatch):
    """Not finite, without area, of other categories, too low: none of it is a problem of the user's."""
    found = [
        ((1, 2, 11, 22), 0.6, PERSON),
        ((1, 2, 11, 22), 0.9, BICYCLE),
        ((5, 5, 5, 9), 0.9, PERSON),
        ((0, 0, np.nan, 9), 0.9, PERSON),
        ((1, 1, 9, 9), np.nan, PERSON),
        ((3, 4, 6, 8), 0.8, PERSON),
        ((3, 4, 6, 8), 0.4, PERSON),
    ]
    corners, scores, labels = (torch.tensor(column) for column in zip(*found, strict=True))
    monkeypatch.setattr(detector, "_model", lambda images: [{"boxes": corners, "scores": scores, "labels": labels}])
    np.testing.assert_allclose(detector.of(0, noise(40, 30)), [[3, 4, 3, 4, 0.8], [1, 2, 10, 20, 0.6]], rtol=1e-6)


@pytest.mark.parametrize("name", [SMALL, "fasterrcnn_mobilenet_v3_large_fpn"])
def test_sizes_that_models_do_not_take(detector, name, monkeypatch):
    """Nobody is in what is thinner than 16 pixels; the thinnest that a model is given, it takes."""
    if name != SMALL:
        monkeypatch.setattr(detector, "_model", build(name))
    for size in ((1, 1), (1, 5000), (5000, 15), (16, 16), (16, 2048)):
        rows = detector.of(0, noise(*size))
        assert rows.shape[1] == 5 and (min(size) >= 16 or len(rows) == 0)


def test_command_line(trained, weights, tmp_path):
    """A folder: every find of every image is a pose, named by the image."""
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), noise(50, 60))
    out = tmp_path / "out"
    flags = [f"--workdir={trained[1]}", f"--input={tmp_path}", f"--out={out}", "--steps=1", "--noflip"]
    done = command("predict.py", *flags, f"--detector={weights}", f"--detector_model={SMALL}")
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert {row["image_id"] for row in results} == {1, 2} and np.isfinite([r["keypoints"] for r in results]).all()
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["a.png", "b.png"]


def test_image_without_persons(predictor, weights, tmp_path):
    """No pose, no denoising, and the picture as it came."""
    pixels = noise(50, 60)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    out = tmp_path / "out"
    predict(predictor, str(tmp_path / "a.png"), str(out), boxes=Detector(weights, SMALL, min_score=1.0), strips=True)
    assert json.loads((out / "results.json").read_text()) == []
    assert [image["file_name"] for image in json.loads((out / "images.json").read_text())] == ["a.png"]
    np.testing.assert_array_equal(cv2.imread(str(out / "pictures" / "a.png")), pixels)
    assert not (out / "denoising").exists()


def test_video_with_persons_in_some_frames(predictor, detector, tmp_path, monkeypatch):
    writer = cv2.VideoWriter(str(tmp_path / "walk.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 64))
    for frame in range(5):
        writer.write(np.full((64, 48, 3), 50 * frame, np.uint8))
    writer.release()

    def find(images):
        there = round(float(images[0].mean()) * 255 / 50) in (1, 4)
        rows = torch.tensor([[4.0, 4.0, 34.0, 44.0]] if there else []).reshape(-1, 4)
        return [{"boxes": rows, "scores": torch.full((len(rows),), 0.9), "labels": torch.full((len(rows),), PERSON)}]

    monkeypatch.setattr(detector, "_model", find)
    predict(predictor, str(tmp_path / "walk.avi"), str(tmp_path / "out"), boxes=detector)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["image_id"] for row in results] == [1, 4]
    assert len(list(VideoReader(str(tmp_path / "out" / "walk.mp4")))) == 5


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("yolo", None, r"detector_model='yolo': must be one of fasterrcnn_resnet50_fpn_v2, "),
        (SMALL, "missing", r"w.pth': not the weights .*91 categories: Missing .*\"backbone.features.0.0.0.weight\""),
        (SMALL, "more", r"91 categories: Unexpected .*\"zero\""),
        (SMALL, "shape", r"size mismatch for backbone.features.0.0.0.weight: .*\[16, 3, 3, 4\].*\[16, 3, 3, 3\]"),
        ("ssd300_vgg16", None, r"not the weights of detector_model='ssd300_vgg16'"),
        (SMALL, "text", r"w.pth: no PyTorch file"),
        (SMALL, "gone", r"detector='.*w.pth': no such file"),
    ],
)
def test_what_cannot_be_used(network, tmp_path, name, change, message):
    state, first, path = dict(network.state_dict()), "backbone.features.0.0.0.weight", tmp_path / "w.pth"
    if change == "missing":
        del state[first]
    elif change == "more":
        state["zero"] = torch.zeros(2)
    elif change == "shape":
        state[first] = torch.zeros(16, 3, 3, 4)
    torch.save(state, path)
    if change == "text":
        path.write_text("no weights")
    elif change == "gone":
        path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Detector(str(path), name)


def test_score_out_of_range():
    with pytest.raises(ValueError, match=r"min_box_score=1.5: must lie in \[0, 1\]"):
        Detector("w.pth", SMALL, 1.5)


def test_without_the_extra(weights, monkeypatch):
    whole = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("torchvision"):
            raise ImportError(name)
        return whole(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r'weights.pth\': needs the detector extra: pip install -e "\.\[detector\]"'):
        Detector(weights, SMALL)


def test_boxes_and_detector_exclude_each_other(tmp_path):
    flags = [f"--input={tmp_path}", f"--out={tmp_path / 'o'}", "--model=a", "--boxes=b", "--detector=c"]
    done = command("predict.py", *flags)
    assert done.returncode == 1 and done.stderr.startswith("error: give one of --boxes and --detector, or neither")


def test_safetensors_and_frozen_batch_norm(detector, network, tmp_path):
    """Weights without the counters of BatchNorm, as torchvision publishes some, from either kind of file."""
    from safetensors.torch import save_file

    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    path, pixels = str(tmp_path / "weights.safetensors"), noise(40, 40)
    save_file(state, path)
    assert len(read_weights(path).tensors) == len(state)
    np.testing.assert_array_equal(Detector(path, SMALL).of(0, pixels), detector.of(0, pixels))


@pytest.mark.parametrize("name", MODELS)
def test_models_are_those_that_torchvision_measured(name, monkeypatch):
    """Built without weights, every normalization has the epsilon that torchvision's own weights run with."""
    published = models.get_model_weights(name)["COCO_V1"]
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
    monkeypatch.setattr(type(published), "get_state_dict", lambda self, **_: {})
    with torch.device("meta"):
        theirs, ours = models.get_model(name, weights=published).eval(), build(name)
    epsilons = [[getattr(module, "eps", None) for module in model.modules()] for model in (theirs, ours)]
    assert epsilons[0] == epsilons[1] and any(epsilons[0]) == (name != "ssd300_vgg16")
    shapes = [
        {key: value.shape for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
        for model in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


def test_the_table_of_names_is_torchvisions():
    for published in DETECTORS.values():
        meta = models.get_model_weights(published.model).DEFAULT.meta
        assert published.ap == meta["_metrics"]["COCO-val2017"]["box_map"]
        assert published.megabytes == round(meta["_file_size"])


def test_a_name_reads_the_cached_file(network, weights, tmp_path, monkeypatch):
    """The name's file in PyTorch's cache, where torchvision itself would have put it, is what finds people."""
    digest = hashlib.sha256(open(weights, "rb").read()).hexdigest()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(weights, tmp_path / "checkpoints" / f"{SMALL}_coco-{digest[:8]}.pth")
    named = types.SimpleNamespace(DEFAULT=types.SimpleNamespace(url=f"none:///{SMALL}_coco-{digest[:8]}.pth"))
    monkeypatch.setattr(models, "get_model_weights", lambda name: named)
    pixels = noise(90, 120)
    np.testing.assert_allclose(Detector("ssdlite").of(0, pixels), expected(network, pixels), rtol=1e-4, atol=1e-3)
