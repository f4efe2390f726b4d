import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import cv2
import jax
import numpy as np
import pytest
from commands import command

from dpose_jax import Predictor, export
from dpose_jax.models.weights import hub
from dpose_jax.workdir import model_folder, recipe_flags
from dpose_jax.workdir.compatibility import as_stored, stored_recipe

RNG = np.random.default_rng(0)

# All that a user of the program writes; nothing of this package is there to help.
USE = """
import sys
import numpy as np
from jax import export
program = export.deserialize(open(sys.argv[1], "rb").read())
crops = np.load(sys.argv[2])
out = program.call(crops, np.arange(len(crops), dtype=np.int32))
np.savez(sys.argv[3], *out)
assert not {"dpose_jax", "flax"} & {name.split(".")[0] for name in sys.modules}
"""


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """What the command line writes: a program for three platforms, and a model folder."""
    folder = tmp_path_factory.mktemp("exported")
    flags = [f"--workdir={trained[1]}", "--steps=2", "--platforms=cpu,cuda,tpu", f"--out={folder / 'model.bin'}"]
    done = command("dpose_jax.export", *flags, f"--weights={folder / 'model'}")
    assert done.returncode == 0, done.stderr
    return folder


def test_program_without_the_code_gives_what_the_predictor_gives(trained, exported, tmp_path):
    predictor = Predictor.from_workdir(trained[1], steps=2, batch_sizes=(3,))
    crops = RNG.integers(0, 256, (3, 64, 64, 3), np.uint8)
    np.save(tmp_path / "crops.npy", crops)
    files = [str(exported / "model.bin"), str(tmp_path / "crops.npy"), str(tmp_path / "out.npz")]
    done = subprocess.run([sys.executable, "-c", USE, *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npz")
    expected = predictor._run(predictor.variables, crops, np.arange(3, dtype=np.int32))
    for array, name in zip(found.values(), export.OUTPUTS, strict=True):
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=2e-3, err_msg=name)


def test_the_lines_of_the_docs_give_what_the_predictor_gives(trained, exported, tmp_path):
    """Cutting crops and mapping joints back, with nothing of this package."""
    page = (pathlib.Path(__file__).parents[1] / "docs" / "predict.md").read_text()
    (code,) = (part for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "export.deserialize" in part)
    code = code.replace("[[40.0, 12, 160, 380]]", "[[4.0, 2, 40, 60], [30, 20, 50, 30], [0, 0, 90, 80]]")
    shutil.copy(exported / "model.bin", tmp_path)
    shutil.copy(exported / "model.json", tmp_path)
    cv2.imwrite(str(tmp_path / "photo.jpg"), cv2.resize(RNG.integers(0, 256, (8, 9, 3), np.uint8), (90, 80)))
    code += "import sys\nassert not {'dpose_jax', 'flax'} & {name.split('.')[0] for name in sys.modules}\n"
    code += "np.savez('out.npz', boxes, joints, scores)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    boxes, joints, scores = np.load(tmp_path / "out.npz").values()
    poses = Predictor.from_workdir(trained[1], steps=2, batch_sizes=(3,))(str(tmp_path / "photo.jpg"), boxes)
    np.testing.assert_allclose(joints, poses.keypoints, atol=5e-3)
    np.testing.assert_allclose(scores, poses.keypoint_scores, atol=1e-3)


def test_program_takes_any_batch_and_runs_everywhere(exported):
    from jax import export as jax_export

    program = jax_export.deserialize((exported / "model.bin").read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[0].shape[0]) == "b" and program.in_avals[0].shape[1:] == (64, 64, 3)
    metadata = json.loads((exported / "model.json").read_text())
    assert (metadata["input_size"], metadata["steps"], metadata["flip"], len(metadata["joints"])) == (
        [64, 64],
        2,
        True,
        17,
    )
    assert metadata["crop"] == {"padding": 1.25, "warp": "unbiased"}
    assert metadata["needs"] == [f"jax>={jax.__version__}", "flatbuffers"]


def test_weights_are_the_workdirs(trained, exported):
    _, variables, metadata = model_folder.load(str(exported / "model"))
    assert metadata["trained"] == {"step": 4, "ema": True, "device": "cpu"}
    assert metadata["config"] == json.loads(json.dumps(as_stored(stored_recipe(trained[1]))))
    average = Predictor.from_workdir(trained[1]).variables
    np.testing.assert_array_equal(
        variables["params"]["coarse_head"]["kernel"], average["params"]["coarse_head"]["kernel"]
    )


def test_a_model_folder_stands_for_its_workdir(trained, exported, tmp_path):
    """Evaluated, with the values of the command line, and exported again."""
    reports = []
    for name, place in (("workdir", trained[1]), ("model", str(exported / "model"))):
        out = tmp_path / f"of_{name}.json"
        options = ["--config.eval.flip=False", "--config.eval.pictures=0", f"--out={out}"]
        done = command("eval.py", f"--{name}={place}", *options)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(out.read_text()))
    assert reports[1]["protocol"].pop("model") == str(exported / "model") and not reports[1]["protocol"]["flip"]
    assert reports[0] == reports[1]
    done = command("dpose_jax.export", f"--model={exported / 'model'}", f"--weights={tmp_path / 'again'}")
    assert done.returncode == 0 and "parameters of step 4" in done.stdout, done.stderr
    assert (tmp_path / "again" / "model.json").read_bytes() == (exported / "model" / "model.json").read_bytes()


def test_a_model_of_the_hub_is_downloaded_by_name(exported, monkeypatch):
    asked = []

    def download(field, repository, name, own):
        asked.append((repository, name, own))
        return str(exported / "model" / name)

    monkeypatch.setattr(hub, "download", download)
    found, expected = model_folder.load("hf:user/poses"), model_folder.load(str(exported / "model"))
    assert found[0] == expected[0] and found[2] == expected[2]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    assert asked == [("user/poses", name, "--model=FOLDER") for name in ("model.safetensors", "model.json")]


def test_a_command_needs_one_model(tmp_path):
    for given in ((None, None), ("runs/demo", "folder")):
        with pytest.raises(ValueError, match="give one of --workdir=DIR and --model=FOLDER"):
            recipe_flags.of_workdir_or_model(*given)
    for name in ("hf:", "hf:owner", "hf:owner/", "hf:a/b/c"):
        with pytest.raises(ValueError, match=f"model '{name}': must be hf:OWNER/REPO"):
            model_folder.load(name)


def test_push_to_hub_sends_the_model_and_its_card_alone(exported, tmp_path):
    calls = []
    api = types.SimpleNamespace(
        create_repo=lambda name, **options: calls.append((name, options)) or f"https://hub/{name}",
        upload_folder=lambda **options: calls.append(options),
    )
    folder = str(exported / "model")
    assert export.push_to_hub(folder, "user/poses", api) == "https://hub/user/poses"
    assert calls[0] == ("user/poses", {"repo_type": "model", "exist_ok": True})
    assert calls[1]["folder_path"] == folder and calls[1]["repo_id"] == "user/poses"
    assert calls[1]["allow_patterns"] == ["model.safetensors", "model.json", "README.md"]
    with pytest.raises(FileNotFoundError, match=r"model\.json: missing"):
        export.push_to_hub(str(tmp_path), "user/poses", api)
    assert len(calls) == 2


def test_hub_client_takes_these_arguments():
    """The real client's signatures, so that the stand-in above cannot hide a change."""
    import inspect

    hub = pytest.importorskip("huggingface_hub", reason="the optional extra `hub`")
    inspect.signature(hub.HfApi.create_repo).bind(None, "a/b", repo_type="model", exist_ok=True)
    inspect.signature(hub.HfApi.upload_folder).bind(
        None, folder_path="f", repo_id="a/b", repo_type="model", allow_patterns=["x"]
    )


def test_metadata_overwrites_neither_the_program_nor_a_model(tmp_path):
    folder = str(tmp_path / "model")
    assert export.metadata_path(str(tmp_path / "model.bin"), folder) == str(tmp_path / "model.json")
    for out, weights in ((f"{folder}/model.bin", folder), ("program.json", None)):
        with pytest.raises(ValueError, match=r"--out=.*: its metadata would replace .*json"):
            export.metadata_path(out, weights)


def test_unknown_platform(trained):
    predictor = Predictor.from_workdir(trained[1])
    for platforms in (["cpu", "abacus"], []):
        with pytest.raises(ValueError, match="platforms="):
            export.export_program(predictor, platforms)


def test_command_line_needs_something_to_write(trained):
    done = command("dpose_jax.export", f"--workdir={trained[1]}", "--push_to_hub=a/b")
    assert done.returncode == 1 and done.stderr.startswith("error: give --out, --weights or both")
