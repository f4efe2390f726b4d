"""Every reader that tests/fuzz.py and tests/test_fuzz.py damage the files of."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import struct
import tempfile
import zipfile
from typing import Any

import coco_folder
import cv2
import numpy as np
import safetensors.numpy
from damage import Read, Reader
from image_files import CMYK_JPEG

from dpose_jax.data import yolo
from dpose_jax.data.array_record.crop_margin import Margin
from dpose_jax.data.array_record.reader import CropSource, RecordSource, records_folder
from dpose_jax.data.build import build
from dpose_jax.data.coco_dataset import FolderSource
from dpose_jax.data.convert import joint_set_of
from dpose_jax.data.image_files import read_header
from dpose_jax.data.sample import BadRecordError, Source
from dpose_jax.evaluation.results_file import score_files
from dpose_jax.inference.boxes import BoxFile, checked_boxes
from dpose_jax.inference.images import load_image
from dpose_jax.inference.progress import Progress, _line
from dpose_jax.models.weights import hub
from dpose_jax.pose.joint_sets import AIC, get_joint_set
from dpose_jax.recipe import Recipe
from dpose_jax.training.metrics import MetricsWriter
from dpose_jax.workdir import compatibility, model_folder
from dpose_jax.workdir.starts import record_start, start_of, training_device

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def _check_persons(source: Source, reads_pixels: bool = True) -> None:
    joints = source[0].keypoints.shape
    for index in range(len(source)):
        person = source[index]
        assert person.keypoints.shape == joints and np.isfinite(person.keypoints).all(), person
        assert set(person.keypoints[:, 2]) <= {0, 1, 2} and np.isfinite(person.bbox).all(), person
        assert (person.bbox[2:] > 0).all() and -(2**31) < person.annotation_id < 2**31 and 0 <= person.score, person
        if reads_pixels:
            with contextlib.suppress(BadRecordError):
                image = source.read_image(index)
                assert image.dtype == np.uint8 and image.ndim == 3
    truth = source.ground_truth()
    assert all(entry["area"] > 0 for entry in truth["annotations"])
    json.dumps(truth, allow_nan=False)


def _folder(file: str, **options) -> Read:
    options = {"max_bad_share": 1.0, "training": "detections" not in options} | options

    def read(folder: pathlib.Path) -> None:
        joint_set = AIC if file == "aic.json" else coco_folder.TINY
        source = FolderSource(str(folder), file, "images", joint_set, **options)
        source.images(with_empty=True)
        source.image_notes()
        _check_persons(source)

    return read


def _prepare_folder(folder: pathlib.Path) -> None:
    coco_folder.write(folder, coco_folder.content(), DETECTIONS)
    cv2.imwrite(str(folder / "images" / "a.jpg"), np.zeros((60, 80, 3), np.uint8))


DETECTIONS = [{"image_id": i % 2 + 1, "category_id": 1, "bbox": [5.0, 4.0, 9, 8], "score": 0.5} for i in range(3)]
RESULTS = [
    {"image_id": i, "category_id": 1, "keypoints": [9.0, 8, 1, 14, 12, 1, 3, 4, 1], "score": 0.9, "bbox": [5, 4, 9, 8]}
    for i in (1, 1, 2)
]
AIC_ENTRY = {
    "image_id": "a",
    "url": "",
    "keypoint_annotations": {"human1": [9, 8, 1, 20, 12, 2, 0, 0, 3] + [12, 14, 1] * 11},
    "human_annotations": {"human1": [5, 4, 40, 50]},
}


def _score(joint_set: Any, truth: str, results: str) -> Read:
    def read(folder: pathlib.Path) -> None:
        for use_area in (False,) if joint_set is AIC else (True, False):
            report = score_files(str(folder / truth), str(folder / results), joint_set, use_area=use_area)
            numbers = [value for value in report.values() if isinstance(value, float)]
            assert all(0 <= number <= 1 for number in numbers), report

    return read


def _prepare_scores(folder: pathlib.Path) -> None:
    truth = coco_folder.content()
    truth["images"].append({"id": 3, "file_name": "a.jpg", "width": 80, "height": 60})
    for name, content in (("truth", truth), ("results", RESULTS), ("aic", [AIC_ENTRY]), ("aic_results", [AIC_ENTRY])):
        (folder / f"{name}.json").write_text(json.dumps(content))


def _read_boxes(folder: pathlib.Path) -> None:
    found = BoxFile(str(folder / "boxes.json"), 0.1)
    assert all(str(folder / "boxes.json") in problem for problem in found.problems)
    for number in found.image_ids(["1.png", "2.png", "x.png"]):
        assert -(2**63) <= number < 2**63
        clipped, problems = checked_boxes(found.of(number), (30, 40))
        assert all(problem or np.isfinite(box).all() for box, problem in zip(clipped, problems, strict=True))


def _export() -> dict:
    """A file as a tool may write it: ids as text and floats, paths, other slashes, no boxes."""
    made = coco_folder.content()
    for image, name in zip(made["images"], ("C:\\set\\1.png", "images/2.png"), strict=True):
        image |= {"id": str(image["id"]), "file_name": name, "path": f"/set/{image['id']}.png", "width": None}
    for entry in made["annotations"]:
        entry |= {"id": float(entry["id"]), "image_id": str(entry["image_id"]), "bbox": [0, 0, 0, 0]}
    return made


YOLO = {
    "path": "set", "train": "images", "val": ["images/1.png", "list.txt"], "kpt_shape": [3, 3], "flip_idx": [0, 2, 1],
    "names": ["person"], "kpt_names": [["nose", "left_hand", "right_hand"]],
}  # fmt: skip
LABELS = b"0 0.5 0.5 0.5 0.4 0.25 0.3 2 0.5 0.5 1 0 0 0\n0 0.4 0.5 0.5 0.4 0.2 0.3 2.0 0.5 0.5 1 0 0 0\n"


def _prepare_yolo(folder: pathlib.Path) -> None:
    coco_folder.write(folder, coco_folder.content())
    (folder / "labels").mkdir()
    for name, data in (
        ("data.yaml", json.dumps(YOLO).encode()),
        ("list.txt", b"images/1.png\n"),
        ("labels/1.txt", LABELS),
    ):
        (folder / name).write_bytes(data)


def _read_yolo(folder: pathlib.Path) -> None:
    found = yolo.read_yolo(str(folder / "data.yaml"))
    for split in found.splits:
        content, audit = yolo.to_coco(found, split)
        json.dumps(content, allow_nan=False)
        assert all(min(entry["bbox"][2:]) >= 0 for entry in content["annotations"]), audit.first


def _read_joint_set(folder: pathlib.Path) -> None:
    found = get_joint_set(str(folder / "joints.json"))
    hash(found)
    assert all(isinstance(name, str) for name in found.joints) and all(type(s) is float for s in found.sigmas)
    assert all(type(i) is int for pair in (*found.limbs, *found.flip_pairs, found.upper_body) for i in pair)
    np.square(2 * np.array(found.sigmas))


def _read_recipe(folder: pathlib.Path) -> None:
    recipe = compatibility.stored_recipe(str(folder))
    stored = json.loads(json.dumps(compatibility.as_stored(recipe), allow_nan=False))
    assert compatibility.from_stored(stored, "again") == recipe.override({"joint_set": recipe.joints})


def _read_model(folder: pathlib.Path) -> None:
    recipe, _, metadata = model_folder.load(str(folder))
    assert isinstance(metadata["trained"], dict) and isinstance(recipe, Recipe)


def _link_weights(folder: pathlib.Path) -> None:
    os.symlink(os.path.join(model_folder.SHIPPED, model_folder.WEIGHTS_FILE), folder / model_folder.WEIGHTS_FILE)


def _read_metrics(folder: pathlib.Path) -> None:
    MetricsWriter(str(folder), start=2).close()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["step"] <= 2 for line in lines), lines


def _read_run(folder: pathlib.Path) -> None:
    before = training_device(str(folder))
    assert before is None or isinstance(before, str)
    assert isinstance(start_of(str(folder), 9)[0], dict)
    record_start(str(folder), 3, {"persons": 2, "sha256": "00"})
    assert start_of(str(folder), 4)[0]["step"] == 3


def _read_progress(folder: pathlib.Path) -> None:
    progress = Progress(str(folder), {"input": "a"})
    for number in (0, 1, 2):
        progress.resume(number, f"{number}.png", [5, 6])
    for entry in progress.entries.values():
        np.array([row["keypoints"] for row in entry["results"]], np.float64).reshape(-1, 3, 3)
    json.dumps(list(progress.entries.values()), allow_nan=False)
    progress.close()


def _read_weights(name: str) -> Read:
    def read(folder: pathlib.Path) -> None:
        found = hub.read(str(folder / name))
        assert all(isinstance(array, np.ndarray) for array in found.tensors.values())

    return read


def _zip(data: bytes) -> bytes:
    """tests/fixtures/zip.pth with another pickle: damage to the zip itself is mostly found by its checksums."""
    made = io.BytesIO()
    with zipfile.ZipFile(FIXTURES / "zip.pth") as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


def _pickle() -> bytes:
    with zipfile.ZipFile(FIXTURES / "zip.pth") as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


TENSORS = safetensors.numpy.save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16)}, {"k": "v"})
_HEADER = struct.unpack("<Q", TENSORS[:8])[0]


def _read_image(name: str) -> Read:
    def read(folder: pathlib.Path) -> None:
        header = read_header((folder / name).read_bytes())
        assert header is None or min(header.size) >= 0
        image = load_image(folder / name)
        assert image.dtype == np.uint8 and image.shape[2] == 3

    return read


def _image(suffix: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def _records(kind: str) -> Read:
    def prepare(folder: pathlib.Path) -> None:
        coco_folder.write(folder, coco_folder.content())
        build(_record_recipe(folder), str(folder), kind)
        path = pathlib.Path(records_folder(str(folder), kind)) / "build.json"
        content = json.loads(path.read_text())
        del content["files"]
        path.write_text(json.dumps(content))

    return prepare


def _record_recipe(folder: pathlib.Path) -> Recipe:
    data = {f"data.{split}_annotations": "truth.json" for split in ("train", "val")}
    data |= {f"data.{split}_images": "images" for split in ("train", "val")} | {"joint_set": coco_folder.TINY}
    return Recipe().override(data | {"data.root": str(folder), "data.workers": 0, "data.max_bad_share": 1.0})


def _read_records(folder: pathlib.Path) -> None:
    options = {"max_bad_share": 1.0, "training": True}
    _check_persons(RecordSource(records_folder(str(folder), "full"), "train", coco_folder.TINY, **options))


def _read_crops(folder: pathlib.Path) -> None:
    margin = Margin.of(_record_recipe(folder), training=True)
    options = {"max_bad_share": 1.0, "training": True, "margin": margin, "height": 1}
    _check_persons(CropSource(records_folder(str(folder), "crops"), "train", coco_folder.TINY, **options))


with open(os.path.join(model_folder.SHIPPED, model_folder.METADATA_FILE)) as _file:
    _MODEL = json.load(_file)
_TINY = json.loads(json.dumps(dataclasses.asdict(coco_folder.TINY)))
_METRICS = b"".join(json.dumps({"step": step, "loss": 0.5, "AP": None}).encode() + b"\n" for step in range(1, 5))
_START = {"step": 0, "device": "cpu", "devices": 1, "processes": 1, "data": {"persons": 2, "sha256": "00"}}
_ENTRY = {
    "image": {"id": 1, "file_name": "1.png", "width": 30, "height": 20},
    "results": [{"image_id": 1, "category_id": 1, "keypoints": [9.0, 8, 0.5] * 3, "score": 0.9}],
    "problems": ["box 2 lies outside"],
    "stamp": [5, 6],
}
_PROGRESS = "\n".join(['{"input": "a"}', _line(_ENTRY), _line(_ENTRY), ""]).encode()

READERS = {
    "annotations": Reader("truth.json", coco_folder.content(), _folder("truth.json"), _prepare_folder),
    "training annotations": Reader(
        "truth.json", coco_folder.content(), _folder("truth.json", max_bad_share=0.4), _prepare_folder
    ),
    "export": Reader("truth.json", _export(), _folder("truth.json"), _prepare_folder),
    "ground truth of an export": Reader(
        "truth.json", _export(), _score(coco_folder.TINY, "truth.json", "results.json"), _prepare_scores
    ),
    "boxes of an export": Reader("boxes.json", _export(), _read_boxes),
    "names of joints": Reader(
        "truth.json",
        coco_folder.content()["categories"],
        lambda folder: joint_set_of(str(folder / "truth.json")),
        encode=lambda data: b'{"images": [], "annotations": [], "categories": ' + data + b"}",
    ),
    "data.yaml": Reader("data.yaml", YOLO, _read_yolo, _prepare_yolo),
    "labels of YOLO": Reader("labels/1.txt", LABELS, _read_yolo, _prepare_yolo),
    "detections": Reader("boxes.json", DETECTIONS, _folder("truth.json", detections="boxes.json"), _prepare_folder),
    "AI Challenger": Reader("aic.json", [AIC_ENTRY] * 2, _folder("aic.json"), _prepare_folder),
    "results": Reader("results.json", RESULTS, _score(coco_folder.TINY, "truth.json", "results.json"), _prepare_scores),
    "ground truth": Reader(
        "truth.json", coco_folder.content(), _score(coco_folder.TINY, "truth.json", "results.json"), _prepare_scores
    ),
    "AI Challenger's results": Reader(
        "aic_results.json", [AIC_ENTRY], _score(AIC, "aic.json", "aic_results.json"), _prepare_scores
    ),
    "AI Challenger's ground truth": Reader(
        "aic.json", [AIC_ENTRY], _score(AIC, "aic.json", "aic_results.json"), _prepare_scores
    ),
    "boxes": Reader("boxes.json", coco_folder.content(), _read_boxes),
    "boxes of a detector": Reader("boxes.json", DETECTIONS, _read_boxes),
    "joint set": Reader("joints.json", _TINY, _read_joint_set),
    "config.json": Reader("config.json", _MODEL["config"], _read_recipe),
    "model.json": Reader("model.json", _MODEL, _read_model, _link_weights),
    "metrics.jsonl": Reader("metrics.jsonl", _METRICS, _read_metrics),
    "run.json": Reader("run.json", {"starts": [_START, _START | {"devices": 8}]}, _read_run),
    "unfinished.jsonl": Reader("unfinished.jsonl", _PROGRESS, _read_progress),
    "zip of PyTorch": Reader("a.pth", (FIXTURES / "zip.pth").read_bytes(), _read_weights("a.pth")),
    "pickle of PyTorch": Reader("a.pth", _pickle(), _read_weights("a.pth"), encode=_zip),
    "stream of PyTorch": Reader("a.pth", (FIXTURES / "stream.pth").read_bytes(), _read_weights("a.pth")),
    "safetensors": Reader("a.safetensors", TENSORS, _read_weights("a.safetensors")),
    "header of safetensors": Reader(
        "a.safetensors",
        json.loads(TENSORS[8 : 8 + _HEADER]),
        _read_weights("a.safetensors"),
        encode=lambda header: struct.pack("<Q", len(header)) + header + TENSORS[8 + _HEADER :],
    ),
    "CMYK JPEG": Reader("a.jpg", CMYK_JPEG, _read_image("a.jpg")),
    **{
        f"image {suffix}": Reader(f"a{suffix}", _image(suffix), _read_image(f"a{suffix}"))
        for suffix in (".jpg", ".png", ".webp", ".tiff", ".bmp")
    },
}


def record_readers() -> dict[str, Reader]:
    """Those of records, whose extra may not be installed; without checksums, as the first builds."""
    found = {}
    for kind, read in (("full", _read_records), ("crops", _read_crops)):
        with tempfile.TemporaryDirectory() as folder:
            _records(kind)(pathlib.Path(folder))
            for path in sorted(pathlib.Path(records_folder(folder, kind)).iterdir()):
                if "-val." in path.name or path.name in ("val_index.json", "val_annotations.json", "report.json"):
                    continue
                content = json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
                name = os.path.join(records_folder("", kind), path.name)
                found[f"{kind} records, {path.name}"] = Reader(name, content, read, _records(kind))
    return found
