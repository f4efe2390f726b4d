"""What a model is made of, a part at a time: parameters, multiply-accumulates, what the backward pass keeps.

python -m dpose_jax.models.summary --config=configs/coco_w32_256x192.py [--config.field=value] [--backbones]
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
from absl import flags
from flax.traverse_util import flatten_dict
from jax.extend.core import Literal

from dpose_jax.models.backbones import BACKBONES
from dpose_jax.models.diffusion_pose import DiffusionPose, build_model
from dpose_jax.models.initialise import abstract_inputs, abstract_variables
from dpose_jax.models.weights.fill import BACKBONE
from dpose_jax.recipe import Recipe
from dpose_jax.runtime import app, recipe_file

# After the backbone's own parts. The first whose expression finds a parameter's path, or an operation's scope, has it;
# the rest is image normalisation, products with the masks, resizing to H x W.
PARTS = {
    "coarse head": "coarse_head", "masks": "draw_masks", "SC-CA": "attention", "merge": "merge", "SGDD": "decoder",
    "rest": "",
}  # fmt: skip


class Part(NamedTuple):
    """Counts of one part for one image and one denoising pass."""

    parameters: int = 0  # scalars
    macs: int = 0  # multiply-accumulates of convolutions and matrix products, as published figures count
    kept: int = 0  # bytes that the backward pass needs of the forward pass, as `jax.vjp` stores them, parameters apart


def summarise(model: DiffusionPose) -> dict[str, Part]:
    """Counts the parts of the backbone, then each of PARTS, from shapes alone; nothing is computed."""
    patterns = {name: f"{BACKBONE}/.*({pattern})" for name, pattern in model.backbone.parts} | PARTS
    variables, inputs = abstract_variables(model), abstract_inputs(model)

    def run(variables, images, joints, visible, t):
        (features, coarse), _ = model.apply(variables, images, True, method="encode", mutable=["batch_stats"])
        condition = model.apply(variables, features, joints, visible, method="condition")
        return model.apply(variables, coarse, condition, t, method="denoise"), coarse

    parts = {name: [0, 0, 0] for name in patterns}
    counts = _parameters(variables), _macs(run, variables, *inputs), _kept(run, variables, *inputs)
    for kind, found in enumerate(counts):
        for scope, number in found:
            parts[next(name for name, pattern in patterns.items() if re.search(pattern, scope))][kind] += number
    return {name: Part(*numbers) for name, numbers in parts.items()}


def summarise_backbone(recipe: Recipe, name: str) -> Part:
    """Counts backbone `name` with the coarse 1x1 head, as published models are; `kept` stays 0."""
    halves = {"model.spatial_attention": False, "model.channel_attention": False}
    model = build_model(recipe.override(halves | {"model.backbone": name, "model.width": None}))
    variables, images = abstract_variables(model), abstract_inputs(model)[0]
    macs = _macs(lambda variables, images: model.apply(variables, images, method="encode"), variables, images)
    kinds = _parameters(variables), macs
    return Part(*(sum(n for scope, n in kind if re.search(f"{BACKBONE}/|coarse_head", scope)) for kind in kinds))


def format_backbones(parts: dict[str, Part]) -> str:
    """A Markdown table, a backbone a row; HRNet's authors divide multiply-adds by 2^30, others by 10^9."""
    lines = ["| `model.backbone` | parameters, M | 10⁹ MACs | 2³⁰ MACs |", "|---|---|---|---|"]
    for name, part in parts.items():
        lines.append(f"| `{name}` | {part.parameters / 1e6:.2f} | {part.macs / 1e9:.2f} | {part.macs / 2**30:.2f} |")
    return "\n".join(lines)


def format_summary(parts: dict[str, Part]) -> str:
    """A Markdown table, a part a row, with shares of the whole in percent."""
    whole = Part(*(sum(numbers) for numbers in zip(*parts.values(), strict=True)))
    lines = ["| part | parameters, M | GMACs | share | kept, MiB |", "|---|---|---|---|---|"]
    for name, part in [*parts.items(), ("whole", whole)]:
        macs = f"{part.macs / 1e9:.3f} | {100 * part.macs / whole.macs:.1f}%"
        lines.append(f"| {name} | {part.parameters / 1e6:.3f} | {macs} | {part.kept / 2**20:.2f} |")
    return "\n".join(lines)


def _parameters(variables) -> list[tuple[str, int]]:
    return [(path, leaf.size) for path, leaf in flatten_dict(variables["params"], sep="/").items()]


def _macs(function, *inputs) -> Iterator[tuple[str, int]]:
    """Scope and multiply-accumulates of each convolution, padding included, and of each matrix product."""
    for scope, equation in equations(jax.make_jaxpr(function)(*inputs).jaxpr):
        size = equation.outvars[0].aval.size if equation.outvars else 0
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            yield scope, size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            yield scope, size * kernel.size // kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]


def _kept(run, variables, *inputs) -> Iterator[tuple[str, int]]:
    """Scope and bytes of each array that the backward pass keeps."""

    def forward(params, stats, *inputs):
        _, pullback = jax.vjp(lambda params: run({"params": params, "batch_stats": stats}, *inputs), params)
        return jax.tree.leaves(pullback)

    jaxpr = jax.make_jaxpr(forward)(variables["params"], variables.get("batch_stats", {}), *inputs).jaxpr
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


def main(recipe: Recipe, *, backbones: bool = False) -> None:
    """Prints the table of a recipe's model, or of all backbones at its `input_size` with its joints."""
    if backbones:
        print(format_backbones({name: summarise_backbone(recipe, name) for name in BACKBONES}))
    else:
        (height, width), remat = recipe.input_size, recipe.model.remat
        print(format_summary(summarise(build_model(recipe))))
        print(f"\nOne image of {height}x{width}, one denoising pass; kept for the backward pass with remat={remat}.")


if __name__ == "__main__":
    CONFIG = recipe_file.define("A file of configs/.")
    BACKBONES_FLAG = flags.DEFINE_bool("backbones", False, "Every backbone with its head instead, as published.")
    flags.mark_flags_as_required(["config"])
    app.run(lambda: main(Recipe.from_config(CONFIG.value), backbones=BACKBONES_FLAG.value))
