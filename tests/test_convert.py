"""YOLO-pose sets become COCO's format with the same joints, and joint sets come from names."""

import json

import cv2
import numpy as np
import pytest
from commands import command
from image_files import exif_turned

from dpose_jax.data import yolo
from dpose_jax.data.coco_dataset import FolderSource
from dpose_jax.data.convert import _convert_and_print, convert_yolo, joint_set_of, training_flags
from dpose_jax.pose.joint_names import odd_pairs, pairs_by_name, side_and_part
from dpose_jax.pose.joint_sets import AIC, COCO, CROWDPOSE, JointSet, get_joint_set

YAML = """\
path: ../datasets/hands  # of another machine
train: images/train
val: images/val
test:
kpt_shape: [3, 3]
flip_idx: [0, 2, 1]
names:
  0: hand
kpt_names:
  0: [wrist, left_tip, right_tip]
"""
LINE = "0 0.5 0.5 0.5 0.4 0.25 0.3 2 0.5 0.5 1 0 0 0"
WIDTH, HEIGHT = 40, 30


def write_set(root, lines=(LINE,), text=YAML, folders=("images/train", "images/val")):
    root.mkdir(exist_ok=True)
    (root / "data.yaml").write_text(text)
    for folder in folders:
        images, labels = root / folder, root / folder.replace("images", "labels")
        images.mkdir(parents=True)
        labels.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(images / "a.jpg"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        (labels / "a.txt").write_text("\n".join(lines) + "\n")
    return str(root / "data.yaml")


def read(found, out, split="train"):
    joint_set = get_joint_set(str(out / "joints.json"))
    options = {"upright": True, "training": True, "category": next(iter(found.names.values()))}
    return FolderSource(found.root, str(out / f"{split}.json"), ".", joint_set, **options)


def test_a_set_is_trained_on_as_it_was_labelled(tmp_path):
    found, written = convert_yolo(write_set(tmp_path / "set"), str(tmp_path / "out"))
    source = read(found, tmp_path / "out")
    assert source.joint_set.joints == ("wrist", "left_tip", "right_tip") and source.joint_set.flip_pairs == ((1, 2),)
    assert len(source) == 1 and source[0].file == str(tmp_path / "set/images/train/a.jpg")
    np.testing.assert_allclose(source[0].bbox, [10, 9, 20, 12])
    np.testing.assert_allclose(source[0].keypoints, [[10, 9, 2], [20, 15, 1], [0, 0, 0]])
    assert sum(source.report()[rule] for rule in source.report() if rule not in ("records", "kept")) == 0
    assert [(w.images, w.persons, sum(w.audit.counts.values())) for w in written.values()] == [(1, 1, 0)] * 2
    assert f"--config.data.val_annotations={tmp_path}/out/val.json" in training_flags(found, str(tmp_path / "out"), 0)


BROKEN = [
    ("line_columns", LINE[:-2]),
    ("line_columns", "0 0.5 0.5 0.5 0.4"),
    ("line_numbers", LINE.replace("0.25", "x")),
    ("line_numbers", LINE.replace("0.25", "nan")),
    ("line_class", "1" + LINE[1:]),
    ("line_class", "0.5" + LINE[1:]),
    ("line_box", LINE.replace("0.5 0.5 0.5 0.4", "20 15 20 12", 1)),
    ("line_box", LINE.replace("0.4", "0")),
    ("line_box", LINE.replace("0.4", "-0.4")),
    ("line_joints", LINE.replace("0.25 0.3", "10 9")),
    ("line_visibility", LINE.replace("0.3 2", "0.3 3")),
]


@pytest.mark.parametrize(("rule", "line"), BROKEN)
def test_malformed_lines_are_left_out_counted_and_named(tmp_path, rule, line):
    found, written = convert_yolo(write_set(tmp_path / "set", (LINE, "", line)), str(tmp_path / "out"))
    assert dict(written["train"].audit.counts) == {rule: 1} and len(read(found, tmp_path / "out")) == 1
    assert written["train"].audit.first[rule][0].startswith(f"{tmp_path}/set/labels/train/a.txt:3: ")


def test_images_and_labels_without_a_partner(tmp_path):
    file = write_set(tmp_path / "set", (LINE, LINE))
    images, labels = tmp_path / "set/images/train", tmp_path / "set/labels/train"
    (images / "b.jpg").write_bytes((images / "a.jpg").read_bytes())
    (images / "c.heic").write_bytes(b"no image")
    (images / "d.jpg").write_bytes(exif_turned((images / "a.jpg").read_bytes()))
    (labels / "d.txt").write_text(LINE)
    (labels / "gone.txt").write_text(LINE)
    (labels / "classes.txt").write_text("hand")
    found, written = convert_yolo(file, str(tmp_path / "out"))
    counts = {"image_without_labels": 1, "image_unreadable": 1, "label_without_image": 1}
    counts |= {"line_repeated": 1, "image_exif_rotated": 1}
    assert dict(written["train"].audit.counts) == counts
    source = read(found, tmp_path / "out")
    # Ultralytics' shares are those of the picture as viewers show it.
    np.testing.assert_allclose(source[1].bbox, [HEIGHT * 0.25, WIDTH * 0.3, HEIGHT * 0.5, WIDTH * 0.4])
    assert source.read_image(1).shape == (WIDTH, HEIGHT, 3)
    assert "--config.data.orientation=upright" in training_flags(found, "out", 1)


def test_linked_folders_and_labels_in_folders_without_images(tmp_path):
    root, store = tmp_path / "set", tmp_path / "store"
    file = write_set(root, folders=("images/train", "images/val", "images/more"))
    for kind in ("images", "labels"):
        store.mkdir(exist_ok=True)
        (root / kind / "more").rename(store / kind)
        (root / kind / "train" / "linked").symlink_to(store / kind)
        (root / kind / "train" / "loop").symlink_to(root / kind)
    lost = root / "labels/train/day2/deep"
    lost.mkdir(parents=True)
    (lost / "b.txt").write_text(LINE)
    found, written = convert_yolo(file, str(tmp_path / "out"))
    assert [written[split].images for split in ("train", "val")] == [3, 1]  # by the loop, train has val's too
    names = [source.file for source in map(read(found, tmp_path / "out").__getitem__, range(3))]
    assert str(root / "images/train/linked/a.jpg") in names
    assert dict(written["train"].audit.counts) == {"label_without_image": 1}
    assert written["train"].audit.first["label_without_image"] == [str(lost / "b.txt")]


def test_a_label_of_another_split_has_its_image(tmp_path):
    text = YAML.replace("images/train", "train.txt").replace("images/val", "val.txt")
    file, images = write_set(tmp_path / "set", text=text, folders=("images",)), tmp_path / "set/images"
    (images / "b.jpg").write_bytes((images / "a.jpg").read_bytes())
    (tmp_path / "set/labels/b.txt").write_text(LINE)
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / f"set/{split}.txt").write_text(f"images/{name}.jpg\n")
    _, written = convert_yolo(file, str(tmp_path / "out"))
    assert [(each.persons, sum(each.audit.counts.values())) for each in written.values()] == [(1, 0), (1, 0)]


def test_joints_without_visibility(tmp_path):
    text = YAML.replace("[3, 3]", "[3, 2]")
    found, _ = convert_yolo(
        write_set(tmp_path / "set", ("0 .5 .5 .5 .4 .25 .3 0 0 -1 .5",), text), str(tmp_path / "out")
    )
    np.testing.assert_allclose(read(found, tmp_path / "out")[0].keypoints, [[10, 9, 2], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("change", "folders"),
    [
        (("path: ../datasets/hands", "path: ."), ("images/train", "images/val")),
        (("images/train", "../train/images"), ("train/images", "images/val")),  # Roboflow's
        (("images/train", "train.txt"), ("images/train", "images/val")),  # CVAT's
        (("images/train", "[images/train, images/more]"), ("images/train", "images/val", "images/more")),
    ],
)
def test_where_images_are(tmp_path, change, folders):
    file = write_set(tmp_path / "set", (LINE,), YAML.replace(*change), folders)
    (tmp_path / "set" / "train.txt").write_text("images/train/a.jpg\n")
    found, _ = convert_yolo(file, str(tmp_path / "out"))
    assert len(read(found, tmp_path / "out")) == len(folders) - 1 and len(read(found, tmp_path / "out", "val")) == 1


def test_classes_and_coco_order(tmp_path):
    text = f"train: images/train\nkpt_shape: [17, 3]\nflip_idx: {list(COCO.flip_order)}\nnames: [dog, person]\n"
    line = "1 .5 .5 .5 .4 " + " ".join(["0.5 0.5 2"] * 17)
    found, _ = convert_yolo(write_set(tmp_path / "set", (line,), text, ("images/train",)), str(tmp_path / "out"))
    assert found.joint_set == COCO and "taken for COCO's" in found.notes[0] and list(found.splits) == ["train"]
    content = json.loads((tmp_path / "out" / "train.json").read_text())
    assert [(each["id"], each["name"]) for each in content["categories"]] == [(1, "dog"), (2, "person")]
    assert content["annotations"][0]["category_id"] == 2
    assert content["categories"][1]["skeleton"][0] == [16, 14]
    assert "--config.data.category=NAME" in training_flags(found, "out", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kpt_shape: [3, 3]", ""), "kpt_shape=None: must be .* detection"),
        (("[3, 3]", "[3, 4]"), r"kpt_shape=\[3, 4\]: must be \[1 to 1000, 2 or 3\]"),
        (("[0, 2, 1]", "['0', 2, 1]"), "flip_idx=.*must hold each of 0..2 once"),
        (("wrist, left_tip", "wrist, wrist"), "kpt_names: .*joints must be non-empty and distinct"),
        (("[0, 2, 1]", "[0, 1]"), r"flip_idx=\[0, 1\]: must hold each of 0..2 once"),
        (("[0, 2, 1]", "[1, 2, 0]"), r"flip_idx=\[1, 2, 0\]: must swap pairs"),
        (("wrist, left_tip", "wrist"), r"kpt_names=.*must be 3 names"),
        (("  0: hand", "  hand: 0"), r"names=\{'hand': 0\}"),
        (("images/val", "images/gone"), "val: no such file or folder: .*set/images/gone"),
        (("images/val", "[1]"), r"val=1: must be text"),
        (("kpt_shape", "kpt_shape: ["), "not YAML: .*line"),
    ],
)
def test_malformed_yaml_names_the_file_and_field(tmp_path, change, message):
    file = write_set(tmp_path / "set", text=YAML.replace(*change))
    with pytest.raises((ValueError, FileNotFoundError), match=rf"set/data.yaml: {message}"):
        yolo.read_yolo(file)


def test_a_set_without_usable_labels_writes_nothing(tmp_path):
    file = write_set(tmp_path / "set", ("0 1 1 1",))
    with pytest.raises(ValueError, match=r"train: no line of labels is usable: {'line_columns': 1}"):
        convert_yolo(file, str(tmp_path / "out"))
    (tmp_path / "set/labels/train/a.txt").unlink()
    with pytest.raises(ValueError, match="train: no image has labels, such as .*labels/train/a.txt"):
        convert_yolo(file, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_commands(tmp_path):
    file = write_set(tmp_path / "set", (LINE, "0 1"))
    done = command("dpose_jax.data.convert", f"--yolo={file}", f"--out={tmp_path}/out")
    assert done.returncode == 1 and not done.stderr
    assert f"problem: train: line_columns: {tmp_path}/set/labels/train/a.txt:2: has 2 numbers, not 14" in done.stdout
    assert f"train: {tmp_path}/out/train.json: 1 persons in 1 images, line_columns 1" in done.stdout
    assert "sigmas: 0.05 is a guess for left_tip, right_tip" in done.stdout
    made = command("dpose_jax.data.convert", f"--joint_set_from={tmp_path}/out/train.json", f"--out={tmp_path}/j.json")
    assert made.returncode == 0 and "flip pairs: left_tip/right_tip" in made.stdout, made.stderr
    wrong = command("dpose_jax.data.convert", f"--out={tmp_path}")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: give one of --yolo and --joint_set_from")


def test_the_malformed_lines_that_are_not_named_are_counted(tmp_path, capsys):
    broken = [f"0 {number}" for number in range(yolo.NAMED + 3)]
    assert not _convert_and_print(write_set(tmp_path / "set", (LINE, *broken)), str(tmp_path / "out"))
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: train: ")]
    assert len(problems) == yolo.NAMED + 1 and f"a.txt:{yolo.NAMED + 1}: has 2 numbers" in problems[-2]
    assert problems[-1] == "problem: train: line_columns: and 3 more"


def joint_file(tmp_path, joint_set, skeleton):
    category = {"id": 1, "name": "person", "keypoints": list(joint_set.joints), "skeleton": skeleton}
    (tmp_path / "own.json").write_text(json.dumps({"images": [], "annotations": [], "categories": [category]}))
    return str(tmp_path / "own.json")


@pytest.mark.parametrize("joint_set", [COCO, CROWDPOSE, AIC])
@pytest.mark.parametrize("first", [1, 0])
def test_public_joint_sets_come_back_from_their_names(tmp_path, joint_set, first):
    file = joint_file(tmp_path, joint_set, [[a + first, b + first] for a, b in joint_set.limbs])
    found, notes = joint_set_of(file)
    assert found.limbs == joint_set.limbs and found.name == "own"
    assert set(map(frozenset, found.flip_pairs)) == set(map(frozenset, joint_set.flip_pairs))
    assert found.upper_body == joint_set.upper_body
    if joint_set is not AIC:  # which has sigmas of its own
        assert found.sigmas == joint_set.sigmas
    assert all("limbs" in note for note in notes) and any("from 0" in note for note in notes) == (first == 0)


def test_a_skeleton_that_does_not_fit(tmp_path):
    joint_set = JointSet("a", ("nose", "left_tip", "tail"), (), (), (0.1,) * 3, ())
    found, notes = joint_set_of(joint_file(tmp_path, joint_set, [[1, 2], [2, 9], "x", [1, 1]]))
    assert found.limbs == ((0, 1),) and any("3 of 4 skeleton entries" in note for note in notes)
    assert any("left_tip have a side and no partner" in note for note in notes)
    assert any("0.05 is a guess for left_tip, tail" in note for note in notes)
    (tmp_path / "own.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "box"}]}')
    with pytest.raises(ValueError, match="own.json: category 1 'box' has no list of keypoints"):
        joint_set_of(str(tmp_path / "own.json"))


@pytest.mark.parametrize(
    ("name", "side", "part"),
    [
        *[(name, "l", "hand") for name in ("left_hand", "hand_left", "Left Hand", "l_hand", "hand.L", "leftHand")],
        *[("LeftHand", "l", "hand"), ("LHand", "l", "hand"), ("lefthand", "l", "hand"), ("rHand", "r", "hand")],
        *[("left big toe", "l", "big_toe"), ("nose", "", "nose"), ("pelvis", "", "pelvis"), ("upright", "", "upright")],
    ],
)
def test_sides_of_names(name, side, part):
    assert side_and_part(name) == (side, part)


def test_flip_pairs_that_contradict_the_names():
    joints = ("left_hand", "right_hand", "left_elbow", "right_elbow", "tail", "tip_a", "tip_b")
    assert pairs_by_name(joints) == ((0, 1), (2, 3))

    def odd(*pairs):
        return odd_pairs(JointSet("own", joints, (), pairs, (0.1,) * 7, ()))

    assert odd((0, 1), (3, 2), (5, 6)) == []
    assert odd((0, 2), (1, 3)) == [
        "'left_hand' and 'left_elbow' are a flip pair",
        "'right_hand' and 'right_elbow' are a flip pair",
        "'left_hand' and 'right_hand' are no flip pair",
        "'left_elbow' and 'right_elbow' are no flip pair",
    ]
    assert odd((0, 1), (2, 3), (4, 5)) == []
    assert "'left_hand' and 'tail' are a flip pair" in odd((0, 4), (2, 3))
    assert all(odd_pairs(joint_set) == [] for joint_set in (COCO, CROWDPOSE, AIC))
