"""Writes a published pose model as a model folder, or HRNet of a workdir by the official names.

python -m dpose_jax.workdir.convert --weights=hrnet_w32|FILE --out=FOLDER
python -m dpose_jax.workdir.convert --workdir=DIR --out=FILE.safetensors
"""

from absl import flags
from safetensors.numpy import save

from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.weights.hrnet_keys import to_official
from dpose_jax.models.weights.published import read_pose_model
from dpose_jax.runtime import app
from dpose_jax.workdir import model_folder, weights_flags
from dpose_jax.workdir.checkpoints import read_variables
from dpose_jax.workdir.compatibility import stored_recipe
from dpose_jax.workdir.files import write_bytes

SUFFIX = ".safetensors"

if __name__ == "__main__":
    WEIGHTS = weights_flags.define("A published HRNet pose model")
    WORKDIR = flags.DEFINE_string("workdir", None, "Instead, a folder that was trained into.")
    OUT = flags.DEFINE_string("out", None, f"The model folder; with --workdir a file that ends in {SUFFIX}.")

    def main():
        if (WEIGHTS.value is None) == (WORKDIR.value is None):
            raise ValueError("give one of --weights and --workdir")
        if OUT.value.endswith(SUFFIX) != (WORKDIR.value is not None):
            raise ValueError(f"--out={OUT.value!r}: must be a folder for --weights, FILE{SUFFIX} for --workdir")
        if WEIGHTS.value is not None:
            recipe, variables = read_pose_model(WEIGHTS.value, **weights_flags.options())
            model_folder.save(OUT.value, variables, recipe, weights=WEIGHTS.value)
            print(f"{OUT.value}: {recipe.model.backbone}, {recipe.joints.num_joints} joints, {recipe.input_size}")
            return
        recipe = stored_recipe(WORKDIR.value)
        if build_model(recipe).subpixels > 1:
            text = "model.upsampling='subpixel': official HRNet has no such head; train with 'bilinear' for one"
            raise ValueError(f"{WORKDIR.value}: {text}")
        restored = read_variables(WORKDIR.value)
        tensors = to_official(restored.variables)
        size = "x".join(map(str, recipe.input_size))
        write_bytes(OUT.value, save(tensors, {"input_size": size, "joint_set": recipe.joints.name}))
        print(f"{OUT.value}: HRNet and coarse branch of step {restored.step}, {len(tensors)} arrays")

    flags.mark_flag_as_required("out")
    app.run(main)
