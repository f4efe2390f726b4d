import functools
import json
import subprocess
import sys
import types
import warnings

import jax
import numpy as np
import pytest

from dpose_jax import Predictor
from dpose_jax.data.datasets import make_source
from dpose_jax.evaluation.evaluator import restore
from dpose_jax.evaluation.predict_split import predict_split
from dpose_jax.inference.predictor import BATCH_SIZES, split_batches
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.pose import uncertainty
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.workdir import model_folder
from dpose_jax.workdir.compatibility import stored_recipe

SIZES = (2, 32)


@pytest.fixture(scope="module")
def predictor(trained):
    """Warmed up: a program for every batch size, and none more by the end of the tests."""
    predictor = Predictor.from_workdir(trained[1], batch_sizes=SIZES)
    assert predictor._run._cache_size() == 0
    predictor.warm_up()
    assert predictor._run._cache_size() == len(SIZES)
    yield predictor
    assert predictor._run._cache_size() == len(SIZES)


@pytest.fixture(scope="module")
def people(trained):
    """Images of the validation split and their persons' boxes."""
    source = make_source(trained[0], "val", training=False)
    images: dict[int, tuple[np.ndarray, list]] = {}
    for index in range(len(source)):
        person = source[index]
        images.setdefault(person.image_id, (source.read_image(index), []))[1].append(person.bbox.tolist())
    return list(images.values())


def assert_same(some, other, atol=2e-3):
    for name in ("keypoints", "keypoint_scores", "scores", "boxes"):
        np.testing.assert_allclose(getattr(some, name), getattr(other, name), rtol=0, atol=atol, err_msg=name)
    np.testing.assert_allclose(some.covariances, other.covariances, rtol=1e-2)


def test_gives_what_the_evaluation_gives(trained, predictor, people):
    """The evaluation's own path over the same persons: batches of the pipeline, flip test, moving average."""
    recipe, workdir = trained
    source = make_source(recipe, "val", training=False)
    sampler, variables = PoseSampler.of(recipe), restore(recipe, workdir).variables
    assert predictor.sampler.settings == sampler.settings[:1] and predictor.sampler.settings[0].steps == 1
    rows = predict_split(recipe, source, functools.partial(jax.jit(sampler.joints), variables))
    expected = rows.predictions(*rows.outputs["steps_1"])
    found = predictor([image for image, _ in people], [boxes for _, boxes in people])
    np.testing.assert_allclose(np.concatenate([poses.keypoints for poses in found]), expected.keypoints, atol=5e-3)
    np.testing.assert_allclose(np.concatenate([poses.keypoint_scores for poses in found]), expected.scores, atol=1e-5)


def test_poses_say_what_they_are(predictor, people):
    image, boxes = people[0]
    poses = predictor(image, boxes)
    count = len(boxes)
    assert len(poses) == count and poses.keypoints.shape == (count, 17, 2)
    assert poses.covariances.shape == (count, 17, 2, 2) and poses.hypotheses is None
    assert poses.names == COCO.joints and poses.limbs == COCO.limbs
    assert (np.linalg.eigvalsh(poses.covariances) > 0).all()
    for scores, person in zip(poses.keypoint_scores, poses.scores, strict=True):
        above = scores[scores > 0.2]
        assert person == pytest.approx(above.mean() if len(above) else 0.0, rel=1e-6)
    weighted = predictor(image, [[*box, 0.5] for box in boxes])
    np.testing.assert_allclose(weighted.scores, 0.5 * poses.scores, rtol=1e-6)


def test_neither_company_nor_batch_size_matters(predictor, people):
    """Alone, with others, in a list: the same poses."""
    (image, boxes), (other, others) = people[0], people[1]
    alone = predictor(image, boxes)
    crowd = predictor(image, [*boxes, *[[5, 5, 50, 80]] * 6])
    first, second = predictor([image, other], [boxes, others])
    assert_same(first, alone)
    assert_same(second, predictor(other, others))
    np.testing.assert_allclose(crowd.keypoints[: len(boxes)], alone.keypoints, atol=2e-3)
    assert [len(poses) for poses in predictor([image, other], [[], others])] == [0, len(others)]


@pytest.mark.parametrize("sizes", [BATCH_SIZES, (1,), (8,), (2, 3, 50)])
def test_batches_cover_every_row_once(sizes):
    for count in range(200):
        batches = split_batches(count, sizes)
        rows = [start + i for start, rows, _ in batches for i in range(rows)]
        assert rows == list(range(count))
        assert all(rows <= size and size in sizes for _, rows, size in batches)
        assert all(2 * rows >= size or size == min(sizes) for _, rows, size in batches)


def test_whole_image_by_default(predictor, people):
    image, _ = people[0]
    assert_same(predictor(image), predictor(image, [[0, 0, image.shape[1], image.shape[0]]]))


def test_covariance_is_that_of_the_crops_heatmap(predictor, people):
    image, boxes = people[0]
    crops, trajectory, _ = predictor.trace(image, boxes[:1])
    assert crops.shape == (1, 64, 64, 3) and trajectory.shape[:2] == (2, 1)
    plain = Predictor(predictor.recipe, predictor.variables, flip=False, batch_sizes=(2,))
    heatmap_pixels = np.asarray(uncertainty.peak_covariance(trajectory[-1]))
    # Unbiased: 63 crop pixels are 15 heatmap pixels; the padded square box is 63 crop pixels.
    side = 1.25 * max(boxes[0][2:])
    expected = heatmap_pixels * (side / 15) ** 2
    np.testing.assert_allclose(plain(image, boxes[:1]).covariances, expected, rtol=1e-2)


def test_hypotheses_have_their_own_noise(predictor, people):
    image, boxes = people[0]
    some = Predictor(predictor.recipe, predictor.variables, hypotheses=3, batch_sizes=(2,), steps=1)
    poses = some(image, boxes)
    assert (some.sampler.settings[0].start, some.sampler.settings[0].t_start) == ("coarse_noised", 300)
    assert poses.hypotheses.shape == (len(boxes), 3, 17, 2)
    assert uncertainty.spread(poses.hypotheses).max() > 1e-3


def test_no_steps_is_the_coarse_branch(predictor, people):
    image, boxes = people[0]
    coarse = Predictor(predictor.recipe, predictor.variables, steps=0, batch_sizes=(2,), flip=False)
    crops, _, _ = predictor.trace(image, boxes[:1])
    _, heatmaps = coarse.model.apply(coarse.variables, crops, method="encode")
    np.testing.assert_allclose(coarse(image, boxes[:1]).keypoint_scores, np.max(heatmaps, axis=(1, 2)), atol=1e-5)
    with pytest.raises(ValueError, match="coarse branch has no denoising"):
        coarse.trace(image, boxes)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 5, 5], [1, np.nan, 5, 5]], r"box 1 \[1\.0, nan, 5\.0, 5\.0\]: not finite"),
        ([[0, 0, 0, 5]], r"box 0 .*must be positive"),
        ([[500, 0, 5, 5]], r"box 0 .*outside of the image"),
        ([[0, 0, 5, 5, 1.5]], r"box 0 .*score must lie in \[0, 1\]"),
        ([0, 0, 5, 5], r"numbers, \(N, 4\).* got \(4,\); one box is \[\[x, y, width, height\]\]$"),
        ([["a", 0, 5, 5]], r"must be numbers.* got \[\['a', 0, 5, 5\]\]$"),
        ([[0, 0, 5, 5], [1, 2]], r"numbers, \(N, 4\).* got \[\[0, 0, 5, 5\], \[1, 2\]\]$"),
        ([[10**400, 0, 5, 5]], r"must be numbers.* got \[\[1000"),
        ([[0, 0, 5]], r"got \(1, 3\)$"),
    ],
)
def test_bad_boxes(predictor, people, boxes, message):
    with pytest.raises(ValueError, match=message):
        predictor(people[0][0], boxes)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 5, 5], [0, 0, 5, 5]], r"got \(4,\); a list of images needs a list of boxes for each"),
        ([[0, 0, 5, 5]], "a list of images needs a list of boxes for each.*: 2 images, got 1$"),
        (5, "a list of images needs a list of boxes for each.*: 2 images, got 5$"),
    ],
)
def test_boxes_of_a_list_of_images_are_a_list_for_each(predictor, people, boxes, message):
    with pytest.raises(ValueError, match=message):
        predictor([people[0][0], people[1][0]], boxes)


def test_odd_boxes_are_warned_of_as_by_the_command(predictor, people):
    """By the rule of the doubts about a file of boxes; of any dtype, and not where they are pixels."""
    image, boxes = people[0]
    with pytest.warns(UserWarning, match=r"^boxes: 1 of 1 persons look normalised: .* in 0\.\.1; they must be pixels"):
        predictor([image], [[[0.1, 0.1, 0.5, 0.8]]])
    with pytest.warns(UserWarning, match="^boxes: 1 of 1 persons have boxes that look like corners") as warned:
        predictor(image[:200, :200], np.array([[100, 90, 199, 198]], np.uint8))
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor(image, boxes)
        predictor(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, r"^steps=-1: must be an integer, 0 \(the coarse branch\) to sampler\.t_start=300$"),
        ({"steps": 301}, r"^steps=301: must be .* to sampler\.t_start=300$"),
        ({"steps": "4"}, r"^steps='4': must be an integer"),
        ({"steps": 0, "hypotheses": 2}, r"^hypotheses=2: must be 1 for the coarse branch"),
        ({"hypotheses": 0}, r"^hypotheses=0: must be an integer, at least 1$"),
        ({"hypotheses": 2, "noise_time": 1001}, r"noise_time=1001"),
        ({"batch_sizes": ()}, r"batch_sizes=\(\)"),
        ({"batch_sizes": 3}, r"^batch_sizes=3: must be one or more positive integers, as \(1, 4, 16, 64\)$"),
        ({"batch_sizes": (4, 0)}, r"batch_sizes=\(4, 0\): must be one or more positive integers"),
        ({"batch_sizes": "16"}, r"batch_sizes='16': must be"),
    ],
)
def test_bad_options_stop_before_anything_is_compiled(predictor, options, message, monkeypatch):
    monkeypatch.setattr("jax.jit", lambda *a, **k: pytest.fail("compiled before the check"))
    with pytest.raises(ValueError, match=message):
        Predictor(predictor.recipe, predictor.variables, **options)


def test_folders_that_hold_no_model(tmp_path):
    for load in (Predictor.from_workdir, Predictor.from_file):
        with pytest.raises(FileNotFoundError, match="missing"):
            load(str(tmp_path))


def test_thousands_of_boxes_and_images_of_any_size(predictor):
    """A whole batch at a time; one pixel; and 20,000 x 20,000, of which only the box is looked at."""
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    poses = predictor(image, np.tile([[10.0, 10.0, 30.0, 40.0]], (2000, 1)))
    assert len(poses) == 2000 and np.ptp(poses.keypoint_scores, axis=0).max() < 1e-5
    assert np.isfinite(predictor(image[:1, :1]).keypoints).all()
    huge = np.zeros((20_000, 20_000, 3), np.uint8)
    huge[19_000:19_060, 15_000:15_060] = image
    far, near = [[15_010, 19_010, 30, 30]], [[10, 10, 30, 30]]
    crops = [predictor.trace(*pair)[0].astype(float) for pair in ((huge, far), (image, near))]
    # OpenCV rounds positions to 1/32 pixel.
    assert np.abs(crops[0] - crops[1]).max() < 255 / 16
    assert (np.abs(predictor(huge, far).keypoints - [15_025, 19_025]) < 19).all()


def test_import_alone_loads_nothing():
    code = "import sys, dpose_jax; assert not {'jax', 'numpy'} & set(sys.modules); dpose_jax.Predictor"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'Predicter'"):
        import dpose_jax

        dpose_jax.Predicter  # noqa: B018


@pytest.fixture
def folder(trained, predictor, tmp_path):
    model_folder.save(str(tmp_path / "model"), predictor.variables, stored_recipe(trained[1]), step=4)
    return tmp_path / "model"


def test_a_model_folder_gives_what_the_workdir_gives(folder, predictor, people):
    image, boxes = people[0]
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    for path in (folder, folder / "model.safetensors"):
        loaded = Predictor.from_file(str(path), batch_sizes=(2,))
        same = jax.tree.map(lambda a, b: bool((a == b).all()), loaded.variables, dict(predictor.variables))
        assert all(jax.tree.leaves(same))
    assert_same(loaded(image, boxes), predictor(image, boxes))


def test_the_joint_set_comes_from_the_model(folder):
    """The file that named it may be gone."""
    metadata = json.loads((folder / "model.json").read_text())
    metadata["config"]["joint_set"] = "gone.json"
    (folder / "model.json").write_text(json.dumps(metadata))
    assert Predictor.from_file(str(folder)).joint_set == COCO


def change(name, **fields):
    def apply(folder):
        metadata = json.loads((folder / "model.json").read_text())
        parts = {"metadata": metadata, "config": metadata["config"], "model": metadata["config"]["model"]}
        parts[name].update(fields)
        (folder / "model.json").write_text(json.dumps(metadata))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"123"), r"model\.safetensors: damaged"),
        (lambda folder: (folder / "model.json").write_text("{"), r"model\.json: not JSON"),
        (lambda folder: (folder / "model.json").write_text("{}"), r"model\.json: describes no model"),
        (change("metadata", format=2), r"model\.json: format 2"),
        (change("config", joint_set_facts={}), r"model\.json: joint_set_facts: missing keys \["),
        (change("model", width=16), r"(?s)not the weights of its config.*\(.*8.*\) there, the model has \(.*16"),
        (change("model", backbone="w99"), r"model\.json: model\.backbone='w99'"),
        (change("model", decoder_blocks=2), r"(?s)block1.*: missing"),
    ],
)
def test_files_that_are_no_model(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        Predictor.from_file(str(folder))


def test_of_thousands_of_persons_two_batches_are_on_their_way():
    """Each holds a network's intermediate values, so that all at once would fill the memory."""
    waiting: list[int] = []

    class Out:
        def __init__(self, ids):
            self.ids = ids
            waiting.append(id(self))

        def __array__(self, *unused, **also):
            waiting.remove(id(self))
            return self.ids

    def run(variables, crops, ids):
        assert len(waiting) <= 2
        return {"ids": Out(ids)}

    predictor = types.SimpleNamespace(batch_sizes=(1, 4), variables=None)
    persons = ((np.zeros((2, 2, 3), np.uint8), number) for number in range(50))
    found = Predictor._in_batches(predictor, run, persons)
    np.testing.assert_array_equal(found["ids"], np.arange(50))
    assert not waiting
