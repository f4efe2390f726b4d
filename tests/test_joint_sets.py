"""Joint sets: internal consistency, agreement with independent sources, and the user's own files."""

import dataclasses
import json

import numpy as np
import pytest
from pycocotools.cocoeval import Params

from dpose_jax.pose import joint_sets
from dpose_jax.pose.joint_sets import JointSet, get_joint_set

NAMES = ("coco", "crowdpose", "aic")
TINY = {
    "joints": ["left_hand", "head", "right_hand"],
    "limbs": [[0, 1], [1, 2]],
    "flip_pairs": [[0, 2]],
    "sigmas": [0.05, 0.02, 0.05],
}


def _write(folder, content) -> str:
    path = folder / "mine.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(path)


@pytest.mark.parametrize(("name", "count", "limbs"), [("coco", 17, 19), ("crowdpose", 14, 15), ("aic", 14, 14)])
def test_counts(name, count, limbs):
    joint_set = get_joint_set(name)
    assert joint_set.name == name
    assert joint_set.num_joints == len(joint_set.joints) == len(joint_set.sigmas) == count
    assert len(joint_set.limbs) == len({frozenset(limb) for limb in joint_set.limbs}) == limbs


@pytest.mark.parametrize("name", NAMES)
def test_flip_order_exchanges_left_and_right(name):
    joint_set = get_joint_set(name)
    order = joint_set.flip_order
    assert [order[order[j]] for j in range(joint_set.num_joints)] == list(range(joint_set.num_joints))
    swap = {"left": "right", "right": "left"}
    for joint, mirrored in zip(joint_set.joints, order, strict=True):
        side, _, rest = joint.partition("_")
        assert joint_set.joints[mirrored] == (f"{swap[side]}_{rest}" if side in swap else joint)


@pytest.mark.parametrize("name", NAMES)
def test_limbs_connect_every_joint(name):
    joint_set = get_joint_set(name)
    reached = {joint_set.limbs[0][0]}
    for _ in joint_set.limbs:
        reached |= {i for limb in joint_set.limbs if reached & set(limb) for i in limb}
    assert reached == set(range(joint_set.num_joints))


@pytest.mark.parametrize("name", NAMES)
def test_limbs_of_a_mirrored_person_are_the_same(name):
    joint_set = get_joint_set(name)
    order = joint_set.flip_order
    limbs = {frozenset(limb) for limb in joint_set.limbs}
    mirrored = {frozenset(order[i] for i in limb) for limb in limbs}
    assert mirrored == limbs


def test_sigmas_of_paired_joints_agree():
    # AI Challenger's were measured joint by joint, so its sides differ.
    for joint_set in (joint_sets.COCO, joint_sets.CROWDPOSE):
        for left, right in joint_set.flip_pairs:
            assert joint_set.sigmas[left] == joint_set.sigmas[right]


def test_coco_sigmas_are_those_of_pycocotools():
    np.testing.assert_allclose(joint_sets.COCO.sigmas, Params("keypoints").kpt_oks_sigmas, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_upper_body_is_closed_under_the_flip_and_above_the_hips(name):
    joint_set = get_joint_set(name)
    assert {joint_set.flip_order[j] for j in joint_set.upper_body} == set(joint_set.upper_body)
    lower = {j for j, joint in enumerate(joint_set.joints) if joint.endswith(("hip", "knee", "ankle"))}
    assert lower | set(joint_set.upper_body) == set(range(joint_set.num_joints))
    assert not lower & set(joint_set.upper_body)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("coco", "coco/annotations/person_keypoints_val2017.json"),
        ("coco", "samples/coco/test_coco.json"),
        ("crowdpose", "samples/crowdpose/test_crowdpose.json"),
        ("crowdpose", "lspet/annotations/lspet_val_crowdpose.json"),
        ("aic", "samples/aic/test_aic.json"),
        ("aic", "lspet/annotations/lspet_val_aic.json"),
    ],
)
def test_joint_order_is_that_of_the_annotations(data_root, name, file):
    category = json.loads((data_root / file).read_text())["categories"][0]
    joints = [joint.lower().replace(" ", "_") for joint in category["keypoints"]]
    assert [{"head": "top_head"}.get(joint, joint) for joint in joints] == list(get_joint_set(name).joints)


@pytest.mark.parametrize(
    ("name", "file"), [("coco", "samples/coco/test_coco.json"), ("aic", "samples/aic/test_aic.json")]
)
def test_limbs_are_those_of_the_annotations(data_root, name, file):
    category = json.loads((data_root / file).read_text())["categories"][0]
    stated = {frozenset(i - 1 for i in limb) for limb in category["skeleton"]}
    assert {frozenset(limb) for limb in get_joint_set(name).limbs} == stated


@pytest.mark.parametrize("name", NAMES)
def test_file_round_trip(tmp_path, name):
    joint_set = get_joint_set(name)
    assert get_joint_set(_write(tmp_path, dataclasses.asdict(joint_set))) == joint_set


def test_file_may_leave_out_name_and_upper_body(tmp_path):
    joint_set = get_joint_set(_write(tmp_path, TINY))
    assert (joint_set.name, joint_set.upper_body) == ("mine", ())
    assert joint_set.flip_order == (2, 1, 0)
    hash(joint_set)  # jit takes it as a static argument


@pytest.mark.parametrize("name", ["cocoo", "", "absent.json", "mine.yaml"])
def test_unknown_name_lists_what_is_allowed(name):
    with pytest.raises(ValueError, match=r"joint_set=.*\['aic', 'coco', 'crowdpose'\].*\.json") as error:
        get_joint_set(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": [0.05, 0.02]}, "sigmas must be 3 positive numbers"),
        ({"sigmas": [0.05, 0.0, 0.05]}, "sigmas must be 3 positive numbers"),
        ({"sigmas": [0.05, float("nan"), 0.05]}, "sigmas: nan must be a finite number"),
        ({"sigmas": [0.05, 10**400, 0.05]}, r"sigmas: 1000+\.\.\.0+ must be a finite number"),
        ({"sigmas": [0.05, "0.02", 0.05]}, "sigmas: '0.02' must be a finite number"),
        ({"sigmas": [0.05, True, 0.05]}, "sigmas: True must be a finite number"),
        ({"sigmas": 0.05}, "sigmas: 0.05 must be a list"),
        ({"sigmas": []}, "sigmas must be 3 positive numbers"),
        ({"joints": ["hand", "head", "hand"]}, "joints must be non-empty and distinct"),
        ({"joints": [], "sigmas": []}, "joints must be non-empty and distinct"),
        ({"limbs": [[0, 3]]}, r"limbs must be pairs of distinct indices in 0\.\.2, got \(0, 3\)"),
        ({"limbs": [[1, 1]]}, r"limbs must be pairs of distinct indices in 0\.\.2, got \(1, 1\)"),
        ({"name": 5}, "name: 5 must be a string"),
        ({"joints": "abc"}, "joints: 'abc' must be a list"),
        ({"joints": [1, 2, 3]}, "joints: 1 must be a string"),
        ({"joints": [["left_hand"], "head", "right_hand"]}, r"joints: \['left_hand'\] must be a string"),
        ({"limbs": [[0, 1, 2]]}, r"limbs: \[0, 1, 2\] must be a list of 2 integers"),
        ({"limbs": [[0, 1.0]]}, "limbs: 1.0 must be an integer"),
        ({"limbs": [[False, True]]}, "limbs: False must be an integer"),
        ({"limbs": ["01"]}, "limbs: '01' must be a list of 2 integers"),
        ({"limbs": 7}, "limbs: 7 must be a list"),
        ({"limbs": {"0": 1}}, r"limbs: \{'0': 1\} must be a list"),
        ({"limbs": None}, "limbs: None must be a list"),
        ({"flip_pairs": [[0, -1]]}, r"flip_pairs must be pairs of distinct indices in 0\.\.2, got \(0, -1\)"),
        ({"flip_pairs": [[0, 1], [1, 2]]}, "flip_pairs must name a joint at most once"),
        ({"upper_body": ["1"]}, "upper_body: '1' must be an integer"),
        ({"upper_body": [3]}, r"upper_body must be indices in 0\.\.2, got \(3,\)"),
        ({"sigma": 1}, r"unknown keys \['sigma'\]"),
    ],
)
def test_bad_file_names_the_file_and_the_field(tmp_path, change, message):
    path = _write(tmp_path, {**TINY, **change})
    with pytest.raises(ValueError, match=message) as error:
        get_joint_set(path)
    assert path in str(error.value)


def test_file_without_a_key_names_it(tmp_path):
    path = _write(tmp_path, {key: value for key, value in TINY.items() if key != "limbs"})
    with pytest.raises(ValueError, match=r"missing keys \['limbs'\]"):
        get_joint_set(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON in UTF-8"),
        (b"{", "not JSON in UTF-8"),
        (b"\xff\xfe{\x00}\x00", "not JSON in UTF-8"),
        (json.dumps(TINY).encode("utf-16"), "not JSON in UTF-8"),
        (b"[" * 200_000, "not JSON in UTF-8"),
        (b'{"sigmas": [1' + b"0" * 5000 + b"]}", "not JSON in UTF-8"),
        (b"[]", "must hold an object, got list"),
        (b"null", "must hold an object, got NoneType"),
        (json.dumps({**TINY, "limbs": "?"}).encode().replace(b'"?"', b"[" * 500 + b"]" * 500), "limbs: .* integers?$"),
    ],
    ids=["empty", "open", "bytes", "utf-16", "deep", "digits", "list", "null", "deep_field"],
)
def test_a_file_that_holds_no_joint_set_gives_one_line(tmp_path, content, message):
    path = _write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        get_joint_set(path)
    assert path in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < len(path) + 200


def test_a_byte_order_mark_is_skipped_and_integers_are_taken_for_floats(tmp_path):
    facts = {**TINY, "joints": ["left_hand", "tête", "right_hand"], "sigmas": [1, 1, 1]}
    joint_set = get_joint_set(_write(tmp_path, json.dumps(facts, ensure_ascii=False).encode("utf-8-sig")))
    assert joint_set.joints[1] == "tête" and all(type(sigma) is float for sigma in joint_set.sigmas)


def test_joint_set_is_checked_when_made_in_code():
    with pytest.raises(ValueError, match="limbs must be pairs"):
        JointSet("pair", ("a", "b"), ((0, 2),), (), (0.1, 0.1), ())
