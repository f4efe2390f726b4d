import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hrnet_weights import FIXTURE, PRESETS, SIZES, draw_image, sample, spec_of, stored_weights

from dpose_jax.models.backbones import BACKBONES
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.models.weights.fill import fill, from_own
from dpose_jax.recipe import Recipe

TOLERANCE = 1e-5  # of the largest value; a tenth of what is promised
ALL = [(preset, size) for preset in PRESETS for size in SIZES]


@functools.cache
def model_of(preset, size=(256, 192), joints="coco", width=None):
    model = {"model.backbone": preset, "model.width": width, "model.decoder_blocks": 1}
    return build_model(Recipe().override({"input_size": size, "joint_set": joints} | model))


@functools.cache
def shapes_of(preset, **fields):
    return abstract_variables(model_of(preset, **fields))


@functools.cache
def ours(preset, size):
    """Features and coarse heatmaps of the official pose weights of a preset.

    Op by op: compiling the whole network takes three times as long as that.
    """
    model = model_of(preset, size)
    weights = model.backbone.published(stored_weights(preset, "pose"))
    variables, _ = fill(shapes_of(preset), weights, "the fixture")
    parts = {
        name: {part: tree[part] for part in tree.keys() & {"hrnet", "coarse_head"}} for name, tree in variables.items()
    }
    return [np.asarray(output) for output in model.apply(parts, draw_image(size), method="encode")]


def assert_close(output, expected):
    np.testing.assert_allclose(output, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize(("preset", "size"), ALL)
def test_outputs_are_torchs(preset, size):
    """Against samples stored by tests/fixtures/make_hrnet_parity.py, image normalisation included."""
    for name, output in zip(("features", "heatmaps"), ours(preset, size), strict=True):
        assert output.shape[1:3] == (size[0] // 4, size[1] // 4)
        with np.load(FIXTURE) as fixture:
            assert_close(sample(output), fixture[f"{preset}/{size[0]}x{size[1]}/{name}"])


@pytest.mark.parametrize(("preset", "size"), ALL)
def test_outputs_are_those_of_torch_here(preset, size):
    """Every value, against the independent HRNet of tests/torch_hrnet.py."""
    pytest.importorskip("torch", reason="PyTorch is not installed; stored samples of it are compared all the same")
    from torch_hrnet import TorchHRNet, as_torch, run

    net = TorchHRNet(spec_of(preset), 17)
    net.load_state_dict(as_torch(stored_weights(preset, "pose")))
    for output, expected in zip(ours(preset, size), run(net, draw_image(size)), strict=True):
        assert_close(output, expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_features_are_those_of_timm_here(preset):
    timm = pytest.importorskip(
        "timm", reason="timm is not installed; the stored samples agreed with it", exc_type=ImportError
    )
    from torch_hrnet import as_torch, run_timm

    net = timm.create_model(f"hrnet_{preset}")
    net.load_state_dict(as_torch(stored_weights(preset, "imagenet")))
    assert_close(ours(preset, SIZES[0])[0], run_timm(net, draw_image(SIZES[0])))


def renamed(tensors, backbone, head):
    return {(head if name.startswith("final_layer.") else backbone) + name: array for name, array in tensors.items()}


@pytest.mark.parametrize(
    ("backbone", "head"), [("module.", "module."), ("backbone.", "head."), ("backbone.", "keypoint_head.")]
)
def test_every_layout_gives_the_same_arrays(backbone, head):
    """Official, saved in parallel, mmpose 1.x and 0.x."""
    tensors, published = stored_weights("w18_small", "pose"), BACKBONES["w18_small"].published
    plain, other = published(tensors), published(renamed(tensors, backbone, head))
    assert plain.arrays.keys() == other.arrays.keys() and not plain.unexpected and not other.unexpected
    assert plain.ignored == other.ignored == {"BatchNorm's step counters": 58}
    for path, array in plain.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[path])


@pytest.mark.parametrize("preset", ["w18_small", "w32"])
def test_imagenet_weights_are_the_backbone_and_no_more(preset):
    pose, imagenet = (BACKBONES[preset].published(stored_weights(preset, layout)) for layout in ("pose", "imagenet"))
    assert not imagenet.unexpected
    assert set(pose.arrays) - set(imagenet.arrays) == {"params/coarse_head/kernel", "params/coarse_head/bias"}
    for path, array in imagenet.arrays.items():
        np.testing.assert_array_equal(array, pose.arrays[path])
    variables, text = fill(shapes_of(preset), imagenet, "FILE")
    assert {path for path in flatten_dict(shapes_of(preset), sep="/") if "/hrnet/" in path} == set(imagenet.arrays)
    assert re.match(r"\d+ of \d+ arrays from FILE; at random: attention, coarse_head, decoder, merge; ", text)
    # The three lower outputs of the last module have 6 projections and 7 halvings: 13 convolutions, 5 arrays each with
    # their BatchNorm.
    assert "65 of lower resolutions" in text and "of classification head" in text


def test_arrays_keep_their_axes():
    """A 3 x 3 and a 1 x 1 convolution and every array of a BatchNorm, element by element."""
    tensors = stored_weights("w18_small", "pose")
    arrays = BACKBONES["w18_small"].published(tensors).arrays
    three, one = tensors["stage2.0.fuse_layers.1.0.0.0.weight"], tensors["layer1.0.conv1.weight"]
    ours = arrays["params/hrnet/stage2_module0/fuse1_0_0/conv/kernel"]
    assert ours.shape == (3, 3, 16, 32) and three.shape == (32, 16, 3, 3)
    for o, i, y, x in [(31, 2, 0, 1), (5, 15, 2, 0)]:
        assert ours[y, x, i, o] == three[o, i, y, x]
    np.testing.assert_array_equal(arrays["params/hrnet/stage1_block0/conv1/conv/kernel"], one[:, :, 0, 0].T)
    norm = "hrnet/stage1_block0/downsample/bn"
    for path, name in [
        (f"params/{norm}/scale", "weight"),
        (f"params/{norm}/bias", "bias"),
        (f"batch_stats/{norm}/mean", "running_mean"),
        (f"batch_stats/{norm}/var", "running_var"),
    ]:
        np.testing.assert_array_equal(arrays[path], tensors[f"layer1.0.downsample.1.{name}"])


def test_all_problems_of_a_file_are_named_at_once():
    tensors = stored_weights("w18_small", "pose")
    del tensors["conv1.weight"], tensors["stage4.0.fuse_layers.0.3.1.running_var"]
    tensors["layer1.0.conv1.weight"] = np.zeros((32, 64, 3, 3))
    tensors["bn2.bias"] = np.zeros(65)
    tensors["bn1.weight"] = np.full(64, np.nan)
    tensors["stage2.1.branches.0.0.conv1.weight"] = np.zeros((16, 16, 3, 3))
    tensors["head.deconv.weight"] = np.zeros(3)
    tensors["conv2.weight_v"] = np.zeros((64, 64, 3, 3))
    tensors["epoch"] = np.array(3.0)
    tensors["backbone.conv2.weight"] = tensors["conv2.weight"]
    model = model_of("w18_small")
    with pytest.raises(ValueError) as caught:
        fill(shapes_of("w18_small"), model.backbone.published(tensors), "FILE")
    assert str(caught.value).splitlines() == [
        "FILE does not fit the model:",
        "  5 unexpected: head.deconv.weight, conv2.weight_v, epoch, backbone.conv2.weight, "
        "stage2.1.branches.0.0.conv1.weight",
        "  2 of another shape: bn2.bias (65,) instead of (64,), "
        "layer1.0.conv1.weight (3, 3, 64, 32) instead of (64, 32)",
        "  1 not finite: bn1.weight",
        "  2 missing: batch_stats/hrnet/stage4_module0/fuse0_3/bn/var, params/hrnet/stem1/conv/kernel",
    ]


def test_another_width_is_an_error_of_bounded_length():
    weights = BACKBONES["w18_small"].published(stored_weights("w18_small", "pose"))
    with pytest.raises(
        ValueError, match=r"FILE does not fit the model:\n  \d{3} of another shape: .* and \d{3} more$"
    ) as caught:
        fill(shapes_of("w18_small", width=32), weights, "FILE")
    assert len(str(caught.value)) < 3000


def test_final_layer_of_other_joints_stays_out():
    tensors = stored_weights("w18_small", "pose")
    weights = BACKBONES["w18_small"].published(tensors)
    variables, text = fill(shapes_of("w18_small"), weights, "FILE")
    np.testing.assert_array_equal(
        variables["params"]["coarse_head"]["kernel"], tensors["final_layer.weight"][:, :, 0, 0].T
    )
    np.testing.assert_array_equal(variables["params"]["coarse_head"]["bias"], tensors["final_layer.bias"])
    assert "at random: attention, decoder, merge;" in text
    shapes = shapes_of("w18_small", joints="crowdpose")
    variables, text = fill(shapes, weights, "FILE")
    assert variables["params"]["coarse_head"] == shapes["params"]["coarse_head"]
    assert "at random: attention, coarse_head, decoder, merge; " in text
    assert "2 of coarse_head of another shape" in text


def test_half_precision_becomes_float32():
    tensors = {name: array.astype(jnp.bfloat16) for name, array in stored_weights("w18_small", "pose").items()}
    variables, _ = fill(shapes_of("w18_small"), BACKBONES["w18_small"].published(tensors), "FILE")
    kernel = variables["params"]["hrnet"]["stem2"]["conv"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, tensors["conv2.weight"].transpose(2, 3, 1, 0).astype(np.float32))


@pytest.fixture(scope="module")
def own(small_model, random_tree):
    return random_tree(abstract_variables(small_model()), seed=1)


def left_alone(start, filled):
    start, filled = (flatten_dict(tree, sep="/") for tree in (start, filled))
    assert start.keys() == filled.keys()
    return {path.partition("/")[2] for path in start if np.array_equal(start[path], filled[path])}


def test_own_weights_come_whole(small_model, random_tree, own):
    start = random_tree(abstract_variables(small_model()), seed=2)
    filled, text = fill(start, from_own(own, same_joints=True), "RUN")
    jax.tree.map(np.testing.assert_array_equal, filled, own)
    count = len(jax.tree.leaves(own))
    assert text == f"{count} of {count} arrays from RUN"


@pytest.mark.parametrize("joints", ["crowdpose", "coco"])
def test_own_weights_of_other_joints_leave_the_heads(small_model, random_tree, own, joints):
    """Also where the number of joints is the same: another joint's channel is no better start than any."""
    start = random_tree(abstract_variables(small_model(joint_set=joints)), seed=2)
    filled, text = fill(start, from_own(own, same_joints=False), "RUN")
    heads = {
        f"{head}/{leaf}" for head in ("coarse_head", "decoder/head", "decoder/stem") for leaf in ("kernel", "bias")
    }
    assert left_alone(start, filled) == heads
    assert text.endswith(
        "at random: coarse_head, decoder/head/bias, decoder/head/kernel, decoder/stem/bias, decoder/stem/kernel; "
        "ignored: 6 of heads of other joints"
    )


def test_own_weights_of_another_backbone_are_refused(small_model, random_tree, own):
    wider = random_tree(abstract_variables(small_model(model__backbone="tiny")))
    with pytest.raises(ValueError, match=r"RUN does not fit the model:\n  \d+ of another shape: .*hrnet/"):
        fill(wider, from_own(own, same_joints=True), "RUN")


def test_own_weights_of_another_decoder_fit_where_they_fit(small_model, random_tree, own):
    start = random_tree(
        abstract_variables(small_model(model__decoder_channels=16, model__channel_attention=False)), seed=2
    )
    filled, text = fill(start, from_own(own, same_joints=True), "RUN")
    parts = {path.split("/")[0] for path in left_alone(start, filled)}
    assert parts == {"decoder", "merge"}
    jax.tree.map(np.testing.assert_array_equal, filled["params"]["hrnet"], own["params"]["hrnet"])
