"""Synthetic people: the same everywhere, labelled by geometry, readable as COCO."""

import copy
import json
import pickle
import zlib

import cv2
import numpy as np
import pytest

from dpose_jax.data.synthetic.dataset import VAL_FIRST_INDEX, SyntheticSource, write_coco_folder
from dpose_jax.data.synthetic.paint import paint_scene
from dpose_jax.data.synthetic.scene import Body, label, lay_out
from dpose_jax.data.synthetic.skeleton import NAMES, NUM_DRAWS, body_points, cosine, sine
from dpose_jax.pose.joint_sets import COCO, CROWDPOSE


def _source(count=24, difficulty=0.5, seed=1, **kwargs):
    return SyntheticSource(count, COCO, difficulty=difficulty, seed=seed, **kwargs)


def _scene(source, image):
    """The labelled layout of image 0..num_images - 1."""
    (scene,) = lay_out(source.settings, [source.first_index + image])
    label(scene)
    return scene


def _silhouettes(scene):
    """Full and visible silhouette of each body, bool (height, width) twice, drawn here on their own."""
    full, seen = [], []
    for layer in scene.layers:
        mask = np.zeros(scene.settings.size, np.uint8)
        if not isinstance(layer, Body):
            cv2.fillConvexPoly(mask, layer, 1, cv2.LINE_8, 4)
        else:
            for piece in layer.pieces:
                cv2.fillPoly(mask, [piece.outer], 1, cv2.LINE_8, 4)
        seen = [before & (mask == 0) for before in seen]
        if isinstance(layer, Body):
            full.append(mask > 0)
            seen.append(mask > 0)
    return full, seen


def test_sine_is_exact_enough_and_odd():
    degrees = np.linspace(-1000, 1000, 4001)
    np.testing.assert_allclose(sine(degrees), np.sin(np.radians(degrees)), atol=1e-8)
    np.testing.assert_allclose(cosine(degrees), np.cos(np.radians(degrees)), atol=1e-8)


def test_bones_keep_their_length_in_every_pose():
    u = np.random.default_rng(0).random((200, NUM_DRAWS))
    points, zoom, sizes = body_points(u, 1.0)
    points[..., :2] /= zoom[..., None]
    at = {name: points[:, k] for k, name in enumerate(NAMES)}
    for a, b, length in (("elbow", "shoulder", 0.165), ("wrist", "elbow", 0.145)):
        for side in ("left", "right"):
            bone = np.linalg.norm(at[f"{side}_{a}"] - at[f"{side}_{b}"], axis=-1)
            np.testing.assert_allclose(bone, length * sizes["arm"], rtol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(at["left_knee"] - at["left_hip"], axis=-1), 0.245 * sizes["leg"], rtol=1e-6
    )


def test_same_index_same_image_whatever_the_source_around_it():
    a, b = _source(4), _source(40, first_index=2)
    for image in (2, 3):
        np.testing.assert_array_equal(a.draw(image), b.draw(image - 2))
        assert a.image_id(image) == b.image_id(image - 2)
    assert not np.array_equal(a.draw(0), a.draw(1))
    assert not np.array_equal(a.draw(0), _source(4, seed=2).draw(0))
    mine = [x for x in a.ground_truth()["annotations"] if x["image_id"] in (3, 4)]
    theirs = [x for x in b.ground_truth()["annotations"] if x["image_id"] in (3, 4)]
    assert mine and mine == theirs


@pytest.mark.parametrize(
    "difficulty, keypoints, pixels",
    [(0.0, 3130050914, 1957941293), (0.5, 3666805449, 1137076285), (1.0, 98237065, 2414291875)],
)
def test_pixels_and_labels_are_those_of_every_machine(difficulty, keypoints, pixels):
    # Measured with numpy 2.1 and OpenCV 4.10, and again with numpy 2.4 and OpenCV 5.0. A change of the drawing on
    # purpose changes these numbers, and every result measured on synthetic people with them.
    source = _source(40, difficulty, seed=0)
    labels = np.array([source[k].keypoints for k in range(len(source))])
    assert zlib.crc32(labels.tobytes()) == keypoints
    assert zlib.crc32(b"".join(source.draw(k).tobytes() for k in range(40))) == pixels


def test_batched_labels_equal_those_of_the_drawn_scene():
    source = _source(70, difficulty=1.0)
    labels = {a["id"]: a for a in source.ground_truth()["annotations"]}
    count = 0
    for image in range(70):
        for k, body in enumerate(_scene(source, image).bodies):
            if body.annotated:
                stored = labels[source._annotation_id(image, k)]
                assert stored["bbox"] == list(body.bbox) and stored["area"] == body.area
                assert stored["keypoints"] == body.keypoints.ravel().tolist()
                count += 1
    assert count == len(labels) == len(source)


def test_items_agree_with_ground_truth_and_pickle():
    source = pickle.loads(pickle.dumps(_source()))
    truth = source.ground_truth()
    assert len(source) == len(truth["annotations"]) == source.report()["kept"] > 24
    for index, annotation in enumerate(truth["annotations"]):
        person = source[index]
        assert (person.annotation_id, person.image_id) == (annotation["id"], annotation["image_id"])
        assert person.keypoints.dtype == person.bbox.dtype == np.float32
        assert person.keypoints.ravel().tolist() == annotation["keypoints"]
        assert person.bbox.tolist() == annotation["bbox"] and min(annotation["bbox"][2:]) > 0
        assert annotation["num_keypoints"] == int((person.keypoints[:, 2] > 0).sum()) > 0
        assert 0 < annotation["area"] <= annotation["bbox"][2] * annotation["bbox"][3]
        assert 0 < annotation["id"] < 2**31
    image = source.read_image(len(source) - 1)
    assert image.shape == (256, 320, 3) and image.dtype == np.uint8
    assert {x["id"] for x in truth["images"]} >= {a["image_id"] for a in truth["annotations"]}


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_labels_follow_the_silhouettes(difficulty):
    source = _source(30, difficulty)
    hidden = 0
    for image in range(30):
        scene = _scene(source, image)
        full, seen = _silhouettes(scene)
        for body, whole, visible in zip(scene.bodies, full, seen, strict=True):
            x, y, w, h = body.bbox
            rows, columns = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
            if len(rows):
                box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                assert np.abs(box - [x, y, x + w, y + h]).max() <= 1
                assert abs(body.area - whole.sum()) <= 5 + 0.02 * body.area
            # OpenCV's two ways to fill a polygon differ by a pixel at its edge.
            whole, visible = (cv2.dilate(m.astype(np.uint8), np.ones((3, 3))) > 0 for m in (whole, visible))
            for joint, (u, v, flag), place in zip(COCO.joints, body.keypoints, body.points, strict=False):
                inside = 0 <= round(place[0] * 16) <= 319 * 16 and 0 <= round(place[1] * 16) <= 255 * 16
                assert (flag > 0) == inside, joint
                if not inside:
                    assert u == v == 0
                    continue
                assert x <= u <= x + w and y <= v <= y + h, joint
                pixel = int(np.rint(v)), int(np.rint(u))
                assert whole[pixel], joint
                if flag == 2:
                    assert visible[pixel], joint
                elif not visible[pixel]:
                    hidden += 1
    assert (hidden > 20) == (difficulty > 0)


def test_an_object_in_front_hides_exactly_the_joints_behind_it():
    scene = _scene(_source(1, 0.0), 0)
    before = scene.bodies[0].keypoints.copy()
    left, top = before[[13, 14], :2].min(0) - 4
    right, bottom = before[[13, 14], :2].max(0) + 4
    box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    scene.layers.append(np.rint(box * 16).astype(np.int32))
    bbox, area = scene.bodies[0].bbox, scene.bodies[0].area
    label(scene)
    after = scene.bodies[0]
    covered = ((before[:, :2] > [left, top]) & (before[:, :2] < [right, bottom])).all(-1)
    assert covered[[13, 14]].all()
    np.testing.assert_array_equal(after.keypoints[:, 2], np.where(covered, 1, before[:, 2]))
    assert (after.bbox, after.area) == (bbox, area)


def test_a_person_in_front_hides_the_one_behind():
    scene = _scene(_source(1, 0.0), 0)
    alone = scene.bodies[0].keypoints[:, 2].copy()
    scene.layers.append(copy.deepcopy(scene.layers[0]))
    label(scene)
    back, front = scene.bodies
    assert (back.keypoints[:, 2] == 1).all() and not back.annotated
    np.testing.assert_array_equal(front.keypoints[:, 2], alone)
    assert (alone == 2).sum() >= 12 and front.annotated


def test_hard_scenes_cut_people_off_and_label_only_what_is_inside():
    truth = _source(80, 1.0).ground_truth()
    flags = np.array([a["keypoints"][2::3] for a in truth["annotations"]])
    assert 0.05 < (flags == 0).any(1).mean() < 0.6
    assert (flags == 1).mean() > 0.1 and (flags == 2).mean() > 0.4
    boxes = np.array([a["bbox"] for a in truth["annotations"]])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= [320, 256]).all()


def test_difficulty_zero_is_one_whole_upright_person_who_faces_us():
    source = _source(60, 0.0)
    assert len(source) == 60
    assert [a["image_id"] for a in source.ground_truth()["annotations"]] == list(range(1, 61))
    for index in range(60):
        person = source[index]
        xy, flag = person.keypoints[:, :2], person.keypoints[:, 2]
        assert (flag > 0).all() and (flag == 2).sum() >= 11
        x, y, w, h = person.bbox
        assert x > 0 and y > 0 and x + w < 320 and y + h < 256 and h >= 90
        assert xy[0, 1] < xy[[5, 6], 1].min() < xy[[11, 12], 1].min() < xy[[15, 16], 1].min()
        # The person's left is at the image's right.
        assert xy[5, 0] > xy[6, 0] and xy[1, 0] > xy[2, 0] and xy[11, 0] > xy[12, 0]


def test_the_view_decides_between_face_and_back():
    front = back = 0
    source = _source(60, 0.5)
    for scene in (_scene(source, k) for k in range(60)):
        for body in scene.bodies:
            left, right = body.points[5, :2], body.points[6, :2]
            upright = body.points[15:17, 1].min() > body.points[5:7, 1].max()
            if not upright or body.keypoints[0, 2] == 0 or abs(left[0] - right[0]) < 0.17 * body.scale:
                continue
            if left[0] < right[0]:
                back += 1
                assert body.keypoints[0, 2] == 1 and (body.keypoints[1:3, 2] < 2).all()
            else:
                front += body.keypoints[0, 2] == 2
    assert back > 5 and front > 20


def test_more_difficulty_more_people_and_more_hidden_joints():
    people, shown = [], []
    for difficulty in (0.0, 0.5, 1.0):
        source = _source(60, difficulty)
        people.append(len(source))
        flags = np.array([source[k].keypoints[:, 2] for k in range(len(source))])
        shown.append((flags == 2).mean())
    assert people[0] < people[1] < people[2] and shown[0] > shown[1] > shown[2]


def test_the_drawing_shows_the_person_on_plain_ground():
    source = _source(8, 0.0)
    for image in range(8):
        scene = _scene(source, image)
        (silhouette,), _ = _silhouettes(scene)
        drawn = paint_scene(scene).astype(int)
        empty = copy.copy(scene)
        empty.layers = []
        ground = paint_scene(empty).astype(int)
        changed = np.abs(drawn - ground).max(-1) > 0
        # Clothes may be nearly as bright as the ground, and a shadow lies beside the feet.
        assert changed[silhouette].mean() > 0.97
        assert changed[~silhouette].mean() < 0.05


def test_written_folder_is_coco_and_equals_the_source(tmp_path):
    from pycocotools.coco import COCO as Api

    reports = write_coco_folder(tmp_path, train_images=6, val_images=3, difficulty=0.5, seed=4, workers=2)
    ids = {}
    for split, count, first in (("train", 6, 0), ("val", 3, VAL_FIRST_INDEX)):
        path = tmp_path / "annotations" / f"person_keypoints_{split}2017.json"
        api = Api(str(path))
        source = _source(count, seed=4, first_index=first)
        assert json.loads(path.read_text()) == source.ground_truth()
        assert reports[split] == source.report()
        assert len(api.getAnnIds(catIds=[1])) == len(source)
        assert api.loadCats(1)[0]["keypoints"] == list(COCO.joints)
        ids[split] = set(api.getImgIds())
        names = sorted(p.name for p in (tmp_path / f"{split}2017").iterdir())
        assert names == [source.file_name(k) for k in range(count)]
        read = cv2.cvtColor(cv2.imread(str(tmp_path / f"{split}2017" / names[0])), cv2.COLOR_BGR2RGB)
        assert np.abs(read.astype(int) - source.draw(0)).mean() < 6
    assert not ids["train"] & ids["val"]


@pytest.mark.parametrize(
    "change",
    [
        {"difficulty": 1.5}, {"difficulty": float("nan")}, {"num_images": 0}, {"seed": -1}, {"first_index": -1},
        {"first_index": 1 << 27}, {"size": (16, 16)},
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change):
    arguments = {"num_images": 2, "joint_set": COCO, "difficulty": 0.5, "seed": 0, **change}
    name = next(iter(change))
    with pytest.raises(ValueError, match=name):
        SyntheticSource(arguments.pop("num_images"), arguments.pop("joint_set"), **arguments)


def test_other_joint_sets_are_refused():
    with pytest.raises(ValueError, match="joint_set='crowdpose'"):
        SyntheticSource(2, CROWDPOSE, difficulty=0.5, seed=0)
