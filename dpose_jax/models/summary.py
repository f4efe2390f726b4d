"""What a model is made of, a part at a time: parameters, multiply-accumulates, what the backward pass keeps.

  python -m dpose_jax.models.summary --config=configs/coco_w32_256x192.py [--config.field=value] [--backbones]

With --backbones, every value of `model.backbone` with its heatmap head instead, as HRNets are published.
"""

import dataclasses
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.extend.core import Literal
from ml_collections import config_flags

from dpose_jax.models.diffusion_pose import DiffusionPose, build_model
from dpose_jax.models.hrnet import PRESETS, HRNet
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.runtime import app

# A part owns the parameters whose path, and the operations whose name scope, its expression finds; the first counts.
PARTS = {
    "HRNet stem": r"hrnet/stem",
    "HRNet stage 1": r"stage1_",
    "HRNet stage 2": r"stage2_|transition1_",
    "HRNet stage 3": r"stage3_|transition2_",
    "HRNet stage 4": r"stage4_|transition3_",
    "coarse head": r"coarse_head",
    "masks": r"draw_masks",
    "SC-CA": r"attention",
    "merge": r"merge",
    "SGDD": r"decoder",
    "rest": r"",  # image normalisation, products with the masks, resizing to H x W
}


@dataclasses.dataclass
class Part:
    """Counts of one part for one image and one denoising pass.

    Attributes:
      parameters: scalars; macs: multiply-accumulates of convolutions and matrix products, as published figures count.
      kept: bytes that the backward pass needs of the forward pass, as `jax.vjp` stores them, parameters apart.
    """

    parameters: int = 0
    macs: int = 0
    kept: int = 0


def summarise(model: DiffusionPose) -> dict[str, Part]:
    """Counts each of PARTS from shapes alone; nothing is computed."""
    parts = {name: Part() for name in PARTS}
    variables = abstract_variables(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        parts[_part_of("/".join(key.key for key in path))].parameters += int(np.prod(leaf.shape))
    inputs = _inputs(model)
    for scope, equation in equations(jax.make_jaxpr(_one_pass(model, variables))(variables["params"], *inputs).jaxpr):
        parts[_part_of(scope)].macs += multiply_accumulates(equation)
    for scope, kept in _residuals(model, variables, inputs):
        parts[_part_of(scope)].kept += kept
    return parts


def summarise_backbone(name: str, input_size: tuple[int, int], joints: int) -> Part:
    """Counts HRNet `name` with a 1x1 head for `joints` at stride 4, as published models are; `kept` stays 0."""
    hrnet, images = HRNet(PRESETS[name]), jax.ShapeDtypeStruct((1, *input_size, 3), jnp.float32)
    variables = jax.eval_shape(hrnet.init, jax.random.key(0), images)
    head, pixels = PRESETS[name].width * joints, (input_size[0] // 4) * (input_size[1] // 4)
    traced = jax.make_jaxpr(hrnet.apply)(variables, images)
    macs = sum(multiply_accumulates(equation) for _, equation in equations(traced.jaxpr))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Part(parameters + head + joints, macs + head * pixels)


def format_backbones(parts: dict[str, Part]) -> str:
    """A Markdown table, a backbone a row; HRNet's authors divide multiply-adds by 2^30, others by 10^9."""
    lines = ["| `model.backbone` | parameters, M | 10⁹ MACs | 2³⁰ MACs |", "|---|---|---|---|"]
    for name, part in parts.items():
        lines.append(f"| `{name}` | {part.parameters / 1e6:.2f} | {part.macs / 1e9:.2f} | {part.macs / 2**30:.2f} |")
    return "\n".join(lines)


def format_summary(parts: dict[str, Part]) -> str:
    """A Markdown table, a part a row, with shares of the whole in percent."""
    whole = Part(*(sum(getattr(part, field.name) for part in parts.values()) for field in dataclasses.fields(Part)))
    lines = ["| part | parameters, M | GMACs | share | kept, MiB |", "|---|---|---|---|---|"]
    for name, part in [*parts.items(), ("whole", whole)]:
        share = 100 * part.macs / whole.macs
        counts = f"{part.parameters / 1e6:.3f} | {part.macs / 1e9:.3f} | {share:.1f}% | {part.kept / 2**20:.2f}"
        lines.append(f"| {name} | {counts} |")
    return "\n".join(lines)


def _inputs(model: DiffusionPose) -> tuple[jax.ShapeDtypeStruct, ...]:
    """One image, its joints and flags, t: what the network sees."""
    joints = model.joint_set.num_joints
    shapes = [((1, *model.codec.input_size, 3), jnp.uint8), ((1, joints, 2), jnp.float32), ((1, joints), jnp.float32)]
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in [*shapes, ((1,), jnp.int32)])


def _one_pass(model: DiffusionPose, variables):
    """A function from parameters and `_inputs` to the two outputs of a training pass: backbone, one denoising."""

    def run(params, images, joints, visible, t):
        stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables["batch_stats"])
        bound = {"params": params, "batch_stats": stats}
        (features, coarse), _ = model.apply(bound, images, True, method="encode", mutable=["batch_stats"])
        condition = model.apply(bound, features, joints, visible, method="condition")
        return model.apply(bound, coarse, condition, t, method="denoise"), coarse

    return run


def _residuals(model: DiffusionPose, variables, inputs) -> Iterator[tuple[str, int]]:
    """Scope and bytes of each array that the backward pass keeps."""

    def forward(params, *inputs):
        _, pullback = jax.vjp(lambda params: _one_pass(model, variables)(params, *inputs), params)
        return jax.tree.leaves(pullback)

    jaxpr = jax.make_jaxpr(forward)(variables["params"], *inputs).jaxpr
    # What does not come from the image is no activation: parameters, also those cast to another dtype, and constants.
    scopes: dict = dict.fromkeys(jaxpr.invars[-len(inputs) :], "")
    for equation in jaxpr.eqns:
        if any(not isinstance(operand, Literal) and operand in scopes for operand in equation.invars):
            scopes |= dict.fromkeys(equation.outvars, str(equation.source_info.name_stack))
    for out in {out for out in jaxpr.outvars if not isinstance(out, Literal)}:
        if scopes.get(out):
            yield scopes[out], out.aval.size * out.aval.dtype.itemsize


def equations(jaxpr, scope: str = "") -> Iterator:
    """Every equation with its name scope, also of functions called inside; the model has no loop."""
    for equation in jaxpr.eqns:
        inner_scope = f"{scope}/{equation.source_info.name_stack}"
        yield inner_scope, equation
        for value in equation.params.values():
            value = getattr(value, "jaxpr", value)
            if hasattr(value, "eqns"):
                yield from equations(value, inner_scope)


def multiply_accumulates(equation) -> int:
    """Of one equation: of a convolution, padding included, or a matrix product; 0 of anything else."""
    out = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return out.size * int(np.prod([equation.invars[0].aval.shape[axis] for axis in contracted]))
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        return out.size * kernel.size // kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 0


def _part_of(scope: str) -> str:
    return next(name for name, expression in PARTS.items() if re.search(expression, scope))


def main(config, *, backbones: bool = False) -> None:
    """Prints the table of a config's model, or of all backbones at its `input_size` with its joints."""
    model = build_model(config)
    if backbones:
        size, joints = model.codec.input_size, model.joint_set.num_joints
        print(format_backbones({name: summarise_backbone(name, size, joints) for name in PRESETS}))
        return
    print(format_summary(summarise(model)))
    height, width = config.input_size
    print(f"\nOne image of {height}x{width}, one denoising pass; kept for the backward pass with remat={model.remat}.")


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
    BACKBONES = flags.DEFINE_bool("backbones", False, "Every backbone with its head instead of the config's model.")
    flags.mark_flags_as_required(["config"])
    app.run(lambda: main(CONFIG.value, backbones=BACKBONES.value))
