"""Writes a trained model for use elsewhere: as a program, as weights, on the Hugging Face Hub.

python -m dpose_jax.export --workdir=runs/demo --steps=4 --platforms=cpu,cuda,tpu --out=model.bin
python -m dpose_jax.export --workdir=runs/demo --weights=FOLDER [--push_to_hub=USER/NAME]

--model=FOLDER, or hf:OWNER/REPO, instead of --workdir takes a model folder.
"""

import os
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from jax import export as jax_export

from dpose_jax import Predictor
from dpose_jax.runtime import app
from dpose_jax.workdir import model_folder
from dpose_jax.workdir.checkpoints import read_variables
from dpose_jax.workdir.compatibility import stored_recipe
from dpose_jax.workdir.files import write_bytes, write_json

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OUTPUTS = ("keypoints", "scores", "covariances")


def export_program(predictor: Predictor, platforms: Sequence[str]) -> bytes:
    """From crops to joints, weights included, as one serialised program for any batch size.

    `jax.export.deserialize(data).call(crops, person_ids)` takes crops (B, Hx, Wx, 3) uint8 and person_ids (B,) int32,
    which seed the sampler's noise. It returns keypoints (B, J, 2) in crop pixels, scores (B, J) and covariances
    (B, J, 2, 2), float32, as `PoseSampler.poses` does. ValueError if a platform is unknown.
    """
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms={list(platforms)}: must be one or more of {PLATFORMS}")
    variables = jax.device_get(predictor.variables)

    def program(crops, person_ids):
        found = predictor.sampler.poses(variables, crops, person_ids)
        return tuple(found[name] for name in OUTPUTS)

    (batch,) = jax_export.symbolic_shape("b")
    size = predictor.recipe.input_size
    inputs = (jax.ShapeDtypeStruct((batch, *size, 3), np.uint8), jax.ShapeDtypeStruct((batch,), np.int32))
    return bytes(jax_export.export(jax.jit(program), platforms=tuple(platforms))(*inputs).serialize())


def metadata_path(out: str, weights: str | None) -> str:
    """The .json beside the program `out`; ValueError if that is `out`, or the model.json of the folder `weights`."""
    path = f"{os.path.splitext(out)[0]}.json"
    taken = [out] if weights is None else [out, os.path.join(weights, model_folder.METADATA_FILE)]
    if os.path.abspath(path) in map(os.path.abspath, taken):
        raise ValueError(f"--out={out!r}: its metadata would replace {path}; choose another name")
    return path


def program_metadata(predictor: Predictor, platforms: Sequence[str]) -> dict:
    """What a user of the program needs to know, JSON values."""
    settings, recipe, joints = predictor.sampler.settings, predictor.recipe, predictor.joint_set
    return {
        "platforms": list(platforms),
        "needs": [f"jax>={jax.__version__}", "flatbuffers"],
        "inputs": ["crops (B, height, width, 3) uint8 RGB", "person_ids (B,) int32"],
        "outputs": ["keypoints (B, J, 2) crop pixels", "scores (B, J)", "covariances (B, J, 2, 2) crop pixels squared"],
        "input_size": list(recipe.input_size),
        "crop": {"padding": recipe.crop.padding, "warp": recipe.crop.warp},
        "steps": settings[0].steps if settings else 0,
        "flip": predictor.sampler.flip,
        "joints": list(joints.joints),
        "limbs": [list(limb) for limb in joints.limbs],
    }


def push_to_hub(folder: str, name: str, api=None) -> str:
    """Uploads a model folder as the repository `name` of the Hugging Face Hub; returns its address.

    `api` is a `huggingface_hub.HfApi`, by default one with the user's own stored login. Raises FileNotFoundError or
    ValueError if the folder holds no model, or without the package huggingface_hub.
    """
    model_folder.load(folder)
    if api is None:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise ValueError('--push_to_hub: needs the hub extra: pip install -e ".[hub]"') from error
        api = HfApi()
    address = api.create_repo(name, repo_type="model", exist_ok=True)
    names = [model_folder.WEIGHTS_FILE, model_folder.METADATA_FILE, "README.md"]
    api.upload_folder(folder_path=folder, repo_id=name, repo_type="model", allow_patterns=names)
    return str(address)


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "The folder that was trained into.")
    MODEL = flags.DEFINE_string("model", None, "Instead, a model folder, or hf:OWNER/REPO.")
    OUT = flags.DEFINE_string("out", None, "A program for jax.export.deserialize; its metadata goes beside it, .json.")
    PROGRAM_STEPS = flags.DEFINE_integer("steps", None, "Sampling steps; by default the fewest of sampler.steps.")
    PROGRAM_FLIP = flags.DEFINE_bool("flip", None, "Whether the program averages with the mirrored crop.")
    PLATFORM = flags.DEFINE_list("platforms", ["cpu"], f"Where the program runs: {', '.join(PLATFORMS)}.")
    WEIGHTS = flags.DEFINE_string("weights", None, "A folder for model.safetensors and model.json, for --model.")
    HUB = flags.DEFINE_string("push_to_hub", None, "Upload the folder of --weights as this repository, USER/NAME.")

    def main():
        if not (OUT.value or WEIGHTS.value) or (HUB.value and not WEIGHTS.value):
            raise ValueError("give --out, --weights or both; --push_to_hub needs --weights")
        if (WORKDIR.value is None) == (MODEL.value is None):
            raise ValueError("give one of --workdir=DIR and --model=FOLDER")
        if OUT.value:
            metadata = metadata_path(OUT.value, WEIGHTS.value)
            options = {"steps": PROGRAM_STEPS.value, "flip": PROGRAM_FLIP.value}
            predictor = Predictor.load(WORKDIR.value, MODEL.value, **options)
            data = export_program(predictor, PLATFORM.value)
            write_bytes(OUT.value, data)
            write_json(metadata, program_metadata(predictor, PLATFORM.value))
            print(f"{OUT.value}: {len(data) / 2**20:.1f} MiB for {', '.join(PLATFORM.value)}")
        if WEIGHTS.value:
            if MODEL.value is None:
                restored, recipe = read_variables(WORKDIR.value), stored_recipe(WORKDIR.value)
                trained = {"step": restored.step, "ema": restored.averaged, "device": restored.training_device}
                variables = restored.variables
            else:
                recipe, variables, described = model_folder.load(MODEL.value)
                trained = described["trained"]
            model_folder.save(WEIGHTS.value, variables, recipe, **trained)
            print(f"{WEIGHTS.value}: parameters of step {trained.get('step')}")
        if HUB.value:
            print(push_to_hub(WEIGHTS.value, HUB.value))

    app.run(main)
