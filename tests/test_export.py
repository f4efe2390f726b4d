import json
import subprocess
import sys
import types

import numpy as np
import pytest
from commands import command

from dpose_jax import Predictor, export
from dpose_jax.workdir import model_folder
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
    pytest.importorskip("flatbuffers", reason="the optional extra `export`")
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


def test_weights_are_the_workdirs(trained, exported):
    _, variables, metadata = model_folder.load(str(exported / "model"))
    assert metadata["trained"] == {"step": 4}
    assert metadata["config"] == json.loads(json.dumps(as_stored(stored_recipe(trained[1]))))
    average = Predictor.from_workdir(trained[1]).variables
    np.testing.assert_array_equal(
        variables["params"]["coarse_head"]["kernel"], average["params"]["coarse_head"]["kernel"]
    )


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
