"""Published pose models, against a stand-in for the hub: random weights in exactly the layouts that lie there."""

import collections
import hashlib
import json
import pathlib
import sys
import zipfile

import jax
import numpy as np
import pytest
from commands import command
from flax.traverse_util import flatten_dict
from hrnet_weights import FIXTURE, draw_image
from safetensors.numpy import save_file
from test_hub import Hub, serve
from test_torch_pickle import Storage, Tensor, dumps

from dpose_jax import Predictor
from dpose_jax.data.crop import crop_spec, invert, padded_view, view_matrix, warp_image
from dpose_jax.data.datasets import make_source
from dpose_jax.inference.predict_files import predict
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.hrnet import HRNetSpec
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.models.weights.hrnet_keys import from_published, to_official
from dpose_jax.models.weights.published import PUBLISHED, SIGMAS, Published, read_pose_model
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.recipe import Recipe
from dpose_jax.training.initial_weights import starting_variables
from dpose_jax.workdir import model_folder
from dpose_jax.workdir.compatibility import as_stored

WIDTH = 8


@pytest.fixture(scope="module")
def variables(random_tree):
    """HRNet of the published depth and a width of 8, with 17 joints."""
    settings = {"model.width": WIDTH, "model.spatial_attention": False, "model.channel_attention": False}
    shapes = abstract_variables(build_model(Recipe().override(settings)))
    return random_tree(
        {name: {part: tree[part] for part in tree.keys() & {"hrnet", "coarse_head"}} for name, tree in shapes.items()}
    )


@pytest.fixture(scope="module")
def official(variables):
    """The same by the official names and in torch's layout."""
    with np.load(FIXTURE) as fixture:
        shapes = json.loads(fixture["w32/pose"].tobytes())
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    names, found = from_published(tensors, HRNetSpec(WIDTH)).names, {}
    for path, array in flatten_dict(variables, sep="/").items():
        if path.endswith("kernel"):
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T[:, :, None, None]
        found[names[path]] = array
    return found


def write_zip(path, content):
    """A file of torch.save: mappings of arrays, strings and numbers."""
    arrays = []

    def stored(value):
        if isinstance(value, dict):
            return collections.OrderedDict((key, stored(part)) for key, part in value.items())
        if not isinstance(value, np.ndarray):
            return value
        arrays.append(np.ascontiguousarray(value, "<f4"))
        strides = tuple(step // 4 for step in arrays[-1].strides)
        return Tensor(Storage(value.size, key=str(len(arrays) - 1)), 0, value.shape, strides)

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(stored(content)))
        for k, array in enumerate(arrays):
            archive.writestr(f"archive/data/{k}", array.tobytes())
    return str(path)


@pytest.mark.parametrize("layout", ["bare", "wrapped", "mmpose", "safetensors"])
def test_every_layout_is_read_as_plain_hrnet(layout, variables, official, tmp_path):
    """256x192 from the metadata or the file's name; mmpose's names; a state dict beside strings and numbers."""
    path = tmp_path / "pose_hrnet_256x192.pth"
    if layout == "bare":
        write_zip(path, official)
    elif layout == "wrapped":
        path = tmp_path / "LibreHRNet-pose.pt"
        write_zip(path, {"task": "pose", "nc": 17, "input_size": [192, 256], "model": official})
    elif layout == "mmpose":
        renamed = {("head." if "final" in name else "backbone.") + name: array for name, array in official.items()}
        write_zip(path, {"meta": {"epoch": 7}, "state_dict": renamed})
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in official.items()}, path)
    recipe, found = read_pose_model(str(path))
    assert (recipe.input_size, recipe.joint_set, recipe.model.width) == ((256, 192), "coco", WIDTH)
    codec = recipe.codec
    assert (codec.name, codec.refine, codec.sigma, recipe.crop.warp) == ("rounded", "quarter", 2.0, "rounded")
    found, expected = (flatten_dict(tree, sep="/") for tree in (found, variables))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])


def test_the_official_layout_is_written_as_it_is_read(variables, official):
    written = to_official(variables)
    counters = {name for name in official if name.endswith("num_batches_tracked")}
    assert written.keys() == official.keys() - counters
    for name, array in written.items():
        np.testing.assert_array_equal(array, official[name])
    with pytest.raises(ValueError, match="params/hrnet/patches/kernel: official HRNet has no such array"):
        to_official({"params": {"hrnet": {"patches": {"kernel": np.zeros((1, 1))}}}})


def test_input_size_by_name_or_argument(official, tmp_path):
    assert read_pose_model(write_zip(tmp_path / "pose_384x288.pth", official))[0].codec.sigma == 3.0
    path = write_zip(tmp_path / "pose.pth", official)
    with pytest.raises(ValueError, match=r"pose\.pth: neither the file nor its name tells the input size"):
        read_pose_model(path)
    assert read_pose_model(path, input_size=(384, 288))[0].input_size == (384, 288)
    with pytest.raises(ValueError, match=r"input_size=\(300, 200\): published models have one of"):
        read_pose_model(path, input_size=(300, 200))


def test_files_that_are_no_pose_model_say_what_they_are(official, tmp_path):
    def refused(tensors, match, **options):
        path = write_zip(tmp_path / "hrnet_256x192.pth", tensors)
        with pytest.raises(ValueError, match=rf"(?s)hrnet_256x192\.pth:? {match}"):
            read_pose_model(path, **options)

    head = {name: official[name] for name in ("final_layer.weight", "final_layer.bias")}
    body = {name: array for name, array in official.items() if name not in head}
    refused(body, r"an HRNet without a head for joints.*--config\.model\.pretrained=")
    refused(head, "no HRNet pose model: it has no stage2; its tensors begin with final_layer")
    refused(official, "its head has 17 joints, joint_set='aic' has 14", joint_set="aic")
    fourteen = body | {name: array[:14] for name, array in head.items()}
    refused(fourteen, r"its head has 14 joints; --joint_set=NAME or FILE says which they are")
    refused({k: v for k, v in official.items() if "stage4.2" not in k}, r"does not fit the model:\n  \d+ missing: ")
    other = official | {"conv1.weight": official["conv1.weight"][:32]}
    refused(other, r"does not fit the model:\n  1 of another shape: conv1\.weight .*instead of")
    refused(body | {"final_layer.weight": head["final_layer.weight"]}, r".*1 missing: params/coarse_head/bias")
    path = write_zip(tmp_path / "whole_256x192.pth", official)
    whole = (tmp_path / "whole_256x192.pth").read_bytes()
    (tmp_path / "cut_256x192.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut_256x192\.pth: broken or cut short"):
        read_pose_model(path.replace("whole", "cut"))
    with pytest.raises(FileNotFoundError, match=r"weights 'hrnet_w31': no such file; .*did you mean 'hrnet_w32'\?"):
        read_pose_model("hrnet_w31")


@pytest.fixture
def hub(tmp_path, monkeypatch, official):
    """A hub of our own with one repository, and the cache that huggingface_hub keeps of it; gives its files."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the hub extra is not installed")
    content = pathlib.Path(write_zip(tmp_path / "pose.pt", {"nc": 17, "model": official})).read_bytes()
    entry = Published("owner/pose", "pose.pt", hashlib.sha256(content).hexdigest(), (256, 192), 115, 74.4)
    monkeypatch.setitem(PUBLISHED, "hrnet_test", entry)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve({"owner/pose/pose.pt": content}) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # Its first versions copy the template.
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        yield Hub


def test_a_name_is_downloaded_once_checked_and_works_offline(hub, monkeypatch, capsys):
    recipe, _ = read_pose_model("hrnet_test")
    said = capsys.readouterr().out
    assert recipe.input_size == (256, 192)
    assert "downloading from the Hugging Face Hub, once: pose.pt of owner/pose, about 115 MB" in said
    assert "weights of the official HRNet (MIT licence)" in said
    hub.asked.clear()
    read_pose_model("hrnet_test")
    assert hub.asked == [] and "downloading" not in capsys.readouterr().out
    monkeypatch.setitem(PUBLISHED, "hrnet_test", PUBLISHED["hrnet_test"]._replace(sha256="0" * 64))
    with pytest.raises(
        ValueError, match=r"'hrnet_test': .*pose\.pt of owner/pose has SHA-256 [0-9a-f]{64}, expected 0{64}"
    ):
        read_pose_model("hrnet_test")


def test_a_repository_that_moved(hub):
    hub.files = {}
    with pytest.raises(
        ConnectionError, match=r"weights 'hrnet_test': owner/pose gives no pose\.pt: .*404.*; --weights=FILE"
    ):
        read_pose_model("hrnet_test")


def test_no_download_is_announced_without_the_hub_library(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"weights 'hrnet_w32': needs the hub extra"):
        read_pose_model("hrnet_w32")
    assert capsys.readouterr().out == ""


def test_the_table_names_files_and_hashes():
    assert {"hrnet_w32", "hrnet_w48_384x288"} <= PUBLISHED.keys()
    for entry in PUBLISHED.values():
        assert len(entry.sha256) == 64 and entry.repository.count("/") == 1
        assert entry.input_size in SIGMAS


def test_the_start_of_a_run_may_be_named(hub, random_tree):
    recipe = Recipe().override({"model.pretrained": "hrnet_test", "model.width": WIDTH, "model.head_dim": (8, 8)})
    model = build_model(recipe)
    filled = starting_variables(recipe, model)
    expected = read_pose_model("hrnet_test")[1]
    jax.tree.map(np.testing.assert_array_equal, filled["params"]["hrnet"], expected["params"]["hrnet"])
    jax.tree.map(np.testing.assert_array_equal, filled["params"]["coarse_head"], expected["params"]["coarse_head"])


def test_converts_to_a_model_folder_and_back_to_the_official_layout(official, tmp_path):
    path, folder = write_zip(tmp_path / "pose_256x192.pth", official), tmp_path / "model"
    done = command("dpose_jax.workdir.convert", f"--weights={path}", f"--out={folder}")
    assert done.returncode == 0, done.stderr
    assert f"{folder}: w32, 17 joints, (256, 192)" in done.stdout
    recipe, variables, metadata = model_folder.load(str(folder))
    assert recipe.override({"joint_set": "coco"}) == read_pose_model(path)[0] and metadata["trained"] == {
        "weights": path
    }
    jax.tree.map(np.testing.assert_array_equal, variables, read_pose_model(path)[1])
    assert Predictor.from_file(str(folder)).sampler.settings == ()
    with pytest.raises(ValueError, match="steps=2: a plain HRNet .* has no denoiser"):
        Predictor.from_file(str(folder), steps=2)
    with pytest.raises(ValueError, match="trajectory: the coarse branch, which is all of a plain HRNet"):
        predict(Predictor.from_file(str(folder)), str(tmp_path), str(tmp_path / "out"), strips=True)
    done = command("dpose_jax.workdir.convert", f"--weights={path}", f"--out={folder}.safetensors")
    assert done.returncode == 1 and "must be a folder for --weights" in done.stderr
    (tmp_path / "run").mkdir()
    subpixels = Recipe().override({"stride": 2, "model.upsampling": "subpixel"})
    (tmp_path / "run" / "config.json").write_text(json.dumps(as_stored(subpixels)))
    done = command("dpose_jax.workdir.convert", f"--workdir={tmp_path}/run", f"--out={folder}.safetensors")
    assert done.returncode == 1 and "model.upsampling='subpixel': official HRNet has no such head" in done.stderr


def official_joints(maps, mirrored_maps, to_image):
    """HRNet's own decoding: the mirrored map moved right by a pixel, the mean, the peak and a quarter offset."""
    back = mirrored_maps[:, ::-1][..., np.array(COCO.flip_order)]
    back[:, 1:] = back[:, :-1].copy()
    mean, found = (maps + back) / 2, []
    for joint in range(mean.shape[-1]):
        one = mean[..., joint]
        y, x = np.unravel_index(one.argmax(), one.shape)
        point = np.array([x, y], np.float64)
        if 1 < x < one.shape[1] - 1 and 1 < y < one.shape[0] - 1:
            point += 0.25 * np.sign([one[y, x + 1] - one[y, x - 1], one[y + 1, x] - one[y - 1, x]])
        found.append(to_image[:, :2] @ (point * 4) + to_image[:, 2])
    return np.array(found)


def test_joints_are_those_of_the_official_decoding(official, tmp_path):
    """By the heatmaps of our network, which test_hrnet_keys holds against PyTorch's."""
    path = write_zip(tmp_path / "pose_256x192.pth", official)
    predictor = Predictor.from_weights(path, batch_sizes=(1,))
    image, box = draw_image((256, 192))[0], (20.0, 30.0, 120.0, 150.0)
    poses = predictor(image, [box])
    recipe = predictor.recipe
    spec = crop_spec(recipe)
    view = padded_view(np.array(box), spec)
    crop = warp_image(image, view, spec)
    encode = jax.jit(lambda v, x: predictor.model.apply(v, x, method="encode")[1])
    maps, mirrored = (np.array(encode(predictor.variables, one[None]))[0] for one in (crop, crop[:, ::-1]))
    expected = official_joints(maps, mirrored, invert(view_matrix(view, spec)))
    np.testing.assert_allclose(poses.keypoints[0], expected, atol=0.01)


def test_eval_scores_a_published_model_by_its_own_protocol(official, tmp_path):
    """Its joints are those of the predictor; what decides on its parameters cannot be changed."""
    path, out = write_zip(tmp_path / "pose_256x192.pth", official), tmp_path / "report.json"
    data = ["--config.data.source=synthetic", "--config.data.synthetic.val_images=2", "--config.eval.pictures=1"]
    done = command("eval.py", f"--weights={path}", f"--out={out}", *data, "--config.eval.batch_size=2")
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert list(report["results"]) == ["coarse"] and (out.parent / "report/pictures/predictions.png").exists()
    protocol = report["protocol"]
    assert protocol["weights"] == path and protocol["flip_shift"] == 1
    assert protocol["codec"] == "rounded+quarter, sigma 2.0, blur 11"
    (results,) = (out.parent / "report/results").iterdir()
    drawn = Recipe().override({"data.source": "synthetic", "data.synthetic.val_images": 2})
    source = make_source(drawn, "val", training=False)
    keypoints = Predictor.from_weights(path, batch_sizes=(1,))(source.read_image(0), [source[0].bbox]).keypoints[0]
    rows = [row["keypoints"] for row in json.loads(results.read_text()) if row["image_id"] == source[0].image_id]
    distances = [np.abs(np.reshape(row, (-1, 3))[:, :2] - keypoints).max() for row in rows]
    assert min(distances) < 0.01
    done = command("eval.py", f"--weights={path}", f"--out={out}", "--config.model.width=16")
    assert done.returncode == 1 and "model.width" in done.stderr
    done = command("eval.py", f"--weights={path}")
    assert done.returncode == 1 and "--weights: needs --out=FILE.json" in done.stderr
