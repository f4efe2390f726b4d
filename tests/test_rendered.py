"""Rendered people: the same at every reading, labelled by the mesh; skipped without the extra [render]."""

import importlib.util
import json
import pickle

import cv2
import numpy as np
import pytest

from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import train_iterator
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.recipe import Recipe

pytest.importorskip("numba", reason="needs the extra [render]: numba")
if importlib.util.find_spec("anny") is None:
    pytest.skip("needs the extra [render]: anny", allow_module_level=True)

from dpose_jax.data.rendered import backdrop, body, kernels, person, poses, posing, scene  # noqa: E402
from dpose_jax.data.synthetic.scene import Settings  # noqa: E402

SETTINGS = Settings(1, 1.0, (96, 80))
WALK = np.array(  # a person who walks to the image's right, px
    [(57, 10, 2), (0, 0, 0), (55, 8, 2), (0, 0, 0), (50, 9, 2), (52, 25, 2), (46, 25, 2), (58, 41, 2), (40, 40, 2),
     (68, 50, 2), (42, 55, 2), (52, 60, 2), (47, 60, 2), (60, 82, 2), (42, 82, 2), (58, 106, 2), (28, 98, 2)],
    np.float32,
)  # fmt: skip


@pytest.fixture(scope="module")
def scenes():
    return [scene.lay_out(SETTINGS, index, WALK[None]) for index in range(12)]


def _recipe(**fields):
    section = {"train_images": 6, "val_images": 4, "size": (96, 80), "seed": 1} | fields
    values = {"data.source": "rendered"} | {f"data.rendered.{name}": value for name, value in section.items()}
    return Recipe().override(values)


def _source(split="train", **fields):
    return make_source(_recipe(**fields), split, training=split == "train")


def _hits(solids, rays, without_skirt=None):
    """Depth (n,) of the first surface on each ray (n, 3), by Moeller and Trumbore's test of every triangle."""
    nearest = np.full(len(rays), np.inf)
    for solid in solids:
        faces = solid.faces if solid is not without_skirt else solid.faces[solid.person.part != body.SKIRT]
        a, b, c = (solid.camera[faces[:, k]] for k in range(3))
        keep = solid.keep[faces]
        for k, ray in enumerate(rays):
            across = np.cross(ray, c - a)
            det = np.einsum("ij,ij->i", b - a, across)
            with np.errstate(divide="ignore", invalid="ignore"):  # triangles seen edge-on
                u = np.einsum("ij,ij->i", -a, across) / det
                q = np.cross(-a, b - a)
                v = q @ ray / det
                t = np.einsum("ij,ij->i", c - a, q) / det
                kept = (1 - u - v) * keep[:, 0] + u * keep[:, 1] + v * keep[:, 2] > 0
                hit = (u >= -1e-9) & (v >= -1e-9) & (u + v <= 1 + 1e-9) & (t > 0) & kept
            nearest[k] = min(nearest[k], t[hit].min(initial=np.inf))
    return nearest * np.asarray(rays)[:, 2]


def _rays(pixels, focal, size):
    middle = 0.5 * (np.array([size[1], size[0]]) - 1.0)
    return np.concatenate([(pixels - middle) / focal, np.ones((len(pixels), 1))], 1)


def test_same_index_same_image_in_any_order_and_process():
    one, other = _source(), pickle.loads(pickle.dumps(_source(train_images=9)))
    images = [one.read_image(k) for k in range(4)]
    for k in (3, 0, 2):
        np.testing.assert_array_equal(other.read_image(k), images[k])
        np.testing.assert_array_equal(other[k].keypoints, one[k].keypoints)
        assert images[k].shape == (96, 80, 3) and images[k].dtype == np.uint8
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], _source(seed=2).read_image(0))
    assert not np.array_equal(images[0], _source("val").read_image(0))


def test_items_agree_with_ground_truth():
    source = _source("val")
    truth = source.ground_truth()
    assert len(source) == len(truth["annotations"]) == len(truth["images"]) == source.report()["kept"] == 4
    for index, entry in enumerate(truth["annotations"]):
        item = source[index]
        assert (item.annotation_id, item.image_id) == (entry["id"], entry["image_id"])
        assert item.keypoints.ravel().tolist() == entry["keypoints"] and item.bbox.tolist() == entry["bbox"]
        assert entry["num_keypoints"] == (item.keypoints[:, 2] > 0).sum() >= 4
        assert 0 < entry["area"] <= entry["bbox"][2] * entry["bbox"][3]


def test_skinning_equals_its_definition():
    rng, data = np.random.default_rng(0), body.load_body()
    turns = np.linalg.qr(rng.standard_normal((len(data.bones), 3, 3)))[0].astype(np.float32)
    moves = rng.standard_normal((len(data.bones), 3)).astype(np.float32)
    found = kernels.skin(data.base, data.bone_index, data.bone_weight, turns, moves, True)
    each = np.einsum("vkij,vj->vki", turns[data.bone_index].astype(np.float64), data.base) + moves[data.bone_index]
    np.testing.assert_allclose(found, (data.bone_weight[..., None] * each).sum(1), atol=2e-6)


def test_limbs_point_where_the_pose_says_and_stay_joined():
    data = body.load_body()
    heads = data.heads(person.template()[:, :3])
    for seed in range(5):
        rng = np.random.default_rng(seed)
        pose = poses.lift(WALK, rng) if seed else poses.sample_pose(rng, 1.0)
        turns = posing.turn_bones(data, heads, pose)
        np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-9)
        assert (np.linalg.det(turns) > 0).all()
        moved = np.einsum("bij,bj->bi", turns, heads) + posing.move_bones(data, heads, turns)
        for child, parent in enumerate(data.parents):
            length = np.linalg.norm(moved[child] - moved[parent]) if parent >= 0 else 0.0
            assert parent < 0 or abs(length - np.linalg.norm(heads[child] - heads[parent])) < 1e-6
        at = dict(zip(data.bones, moved, strict=True))
        for side, full in (("l", "left"), ("r", "right")):
            for bone, end, a, b in (
                ("upperarm", "lowerarm", "shoulder", "elbow"), ("lowerarm", "hand", "elbow", "wrist"),
                ("thigh", "calf", "hip", "knee"), ("calf", "foot", "knee", "ankle"),
            ):  # fmt: skip
                step = at[f"{end}_{side}"] - at[f"{bone}_{side}"]
                wanted = pose.points[posing.JOINT[f"{full}_{b}"]] - pose.points[posing.JOINT[f"{full}_{a}"]]
                assert posing.unit(step) @ posing.unit(wanted) > 1 - 1e-6


def test_a_lifted_pose_looks_like_its_annotation():
    pose = poses.lift(WALK, np.random.default_rng(0))
    flat = WALK[:, :2] * (1.0, -1.0)
    for a, b in ((5, 7), (7, 9), (6, 8), (8, 10), (11, 13), (13, 15), (12, 14), (14, 16), (5, 6), (11, 12)):
        np.testing.assert_allclose((pose.points[b] - pose.points[a])[:2], flat[b] - flat[a], atol=1e-4)
    assert pose.head[0, 2] > 0.5  # looks to the image's right, as the nose is to the right of the ear
    np.testing.assert_allclose(pose.head.T @ pose.head, np.eye(3), atol=1e-9)


def test_joints_are_those_of_the_mesh(monkeypatch, scenes):
    for made in scenes:
        subject, solid = made.solids[0].person, made.solids[0]
        position = solid.camera[0] - subject.vertices[0] * (1.0, -1.0, -1.0)
        camera = subject.joints * (1.0, -1.0, -1.0) + position
        height, width = SETTINGS.size
        pixels = made.focal * camera[:, :2] / camera[:, 2:] + (0.5 * (width - 1), 0.5 * (height - 1))
        np.testing.assert_allclose(made.joints[:, :2], pixels, atol=1e-3)
        inside = ((pixels >= 0) & (pixels <= (width - 1, height - 1))).all(1)
        np.testing.assert_array_equal(made.keypoints[:, 2] > 0, inside)
        np.testing.assert_allclose(made.keypoints[inside, :2], pixels[inside], atol=1e-3)
        assert not made.keypoints[~inside].any()
    monkeypatch.setattr(person, "_thickness", lambda rng, fixed, *_: np.zeros(len(fixed), np.float32))
    monkeypatch.setattr(person, "shoe", lambda: np.zeros_like(body.load_body().base))
    bare = person.make_person(np.random.default_rng(0), poses.lift(WALK, np.random.default_rng(0)))
    np.testing.assert_allclose(body.load_body().joints @ bare.vertices, bare.joints, atol=1e-5)


def test_silhouette_and_depth_are_those_of_the_mesh(scenes):
    rng = np.random.default_rng(0)
    for made in scenes[:6]:
        x, y, w, h = made.bbox
        outside = made.silhouette.copy()
        outside[y : y + h, x : x + w] = False
        assert made.area == made.silhouette.sum() and not outside.any()
        assert made.silhouette[y].any() and made.silhouette[y + h - 1].any()
        assert made.silhouette[:, x].any() and made.silhouette[:, x + w - 1].any()
        pixels = np.stack([rng.integers(0, SETTINGS.size[1], 40), rng.integers(0, SETTINGS.size[0], 40)], 1)
        rays = _rays(pixels, made.focal, SETTINGS.size)
        rows = pixels[:, 1], pixels[:, 0]
        np.testing.assert_array_equal(np.isfinite(_hits(made.solids[:1], rays)), made.silhouette[rows])
        depth = _hits(made.solids, rays)
        np.testing.assert_array_equal(np.isfinite(depth), made.ids[rows] >= 0)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(1.0 / made.inverse[rows], depth, rtol=1e-9)


def test_visibility_is_that_of_a_ray_through_every_triangle(scenes):
    found = set()
    for made in scenes:
        subject = made.solids[0].person
        first = _hits(made.solids, _rays(made.joints[:, :2], made.focal, SETTINGS.size), made.solids[0])
        allowed = scene.FLESH * subject.stature / 1.7 + max(subject.outfit.loose)
        shown = first >= made.joints[:, 2] - allowed
        inside = made.keypoints[:, 2] > 0
        np.testing.assert_array_equal(made.keypoints[inside, 2] == 2, shown[inside])
        found |= set(made.keypoints[:, 2].tolist())
    assert found == {0.0, 1.0, 2.0}


def test_a_joint_behind_a_board_is_hidden():
    made = scene.lay_out(Settings(0, 0.0, (96, 80)), 0, None)
    stage = scene._Stage(made.focal, made.settings.size)
    board = np.array([[-9.0, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]])
    for depth, expected in ((0.3, {1.0}), (60.0, {1.0, 2.0})):
        solid = stage.add(board, np.array([[0, 1, 2], [0, 2, 3]], np.int32), np.array([0.0, 0.0, depth]))
        seen = scene.label(made.joints, [made.solids[0], solid], made.settings.size)
        assert set(seen[:, 2].tolist()) <= expected
    assert (seen[:, 2] == 2).sum() >= 4


def test_the_camera_moves_nothing():
    image = np.full((96, 80, 3), 40.0, np.float32)
    cv2.circle(image, (40, 48), 12, (220, 220, 220), -1)
    rows, columns = np.mgrid[:96, :80]
    for seed in range(25):
        done = backdrop.photograph(np.random.default_rng(seed), image.copy(), 1.0).astype(np.float64).sum(-1)
        mask = np.clip(done - np.median(done), 0, None) * (np.hypot(rows - 48, columns - 40) < 24)
        assert abs((mask * columns).sum() / mask.sum() - 40) < 0.35
        assert abs((mask * rows).sum() / mask.sum() - 48) < 0.35


def test_backgrounds_come_from_the_folder(tmp_path, caplog):
    folder = tmp_path / "pictures"
    folder.mkdir()
    cv2.imwrite(str(folder / "green.png"), np.full((50, 60, 3), (0, 255, 0), np.uint8))
    (folder / "broken.jpg").write_bytes(b"no picture")
    source = _source(difficulty=0.0, backgrounds=str(folder))
    for index in range(4):
        image, made = source.read_image(index).astype(int), source.scene(index)
        far = cv2.dilate((made.ids >= 0).astype(np.uint8), np.ones((35, 35))) == 0
        assert "broken.jpg: cannot be decoded" in caplog.text
        assert far.any() and (image[far][:, 1] > 100).all() and (image[far][:, [0, 2]] < 30).all()


def test_poses_come_from_the_file_and_are_counted(tmp_path):
    def entry(number, joints):
        return {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [20, 2, 60, 110], "area": 900,
                "keypoints": joints.ravel().tolist()}  # fmt: skip

    cut = WALK.copy()
    cut[15] = 0
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 120}],
        "annotations": [entry(1, WALK), entry(2, cut)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.joints)}],
    }
    file = tmp_path / "poses.json"
    file.write_text(json.dumps(content))
    report = _source(poses=str(file)).report()
    assert (report["kept"], report["poses"], report["poses_incomplete"]) == (6, 1, 1)
    content["annotations"].pop(0)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"poses\.json: no person is left of 1"):
        _source(poses=str(file))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"poses": "none.json"}, "none.json"),
        ({"backgrounds": "nowhere"}, "data.rendered.backgrounds='nowhere': no such folder"),
    ],
)
def test_a_missing_file_is_named(fields, message):
    with pytest.raises(FileNotFoundError, match=message):
        _source(**fields)


def test_a_missing_extra_is_named(monkeypatch):
    body.load_body.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="data.source='rendered': needs the render extra, and of it the package anny"):
        _source()


def test_the_loader_takes_it():
    recipe = _recipe().override({"data.workers": 0, "train.batch_size": 4, "input_size": (64, 64)})
    source = make_source(recipe, "train", training=True)
    stream = train_iterator(recipe, source)
    batch = next(stream)
    stream.close()
    assert batch["image"].shape == (4, 64, 64, 3) and batch["visible"].sum() > 16
    assert (batch["bad_index"] == -1).all()
