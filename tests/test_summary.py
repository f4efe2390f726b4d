import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.models import summary
from dpose_jax.models.backbones import BACKBONES
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.models.summary import PARTS, format_backbones, summarise, summarise_backbone
from dpose_jax.recipe import Recipe

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "model.md"


@pytest.mark.parametrize(("preset", "millions", "digits", "gmacs"), [("w32", 28.54, 2, 7.1), ("w48", 63.6, 1, 14.6)])
def test_hrnet_has_the_published_numbers(preset, millions, digits, gmacs):
    """Sun et al., 256 x 192, with a 1x1 head for COCO's 17 joints.

    Their code divides multiply-adds by 1024^3, so their 7.1 are 7.6 of 10^9; every batch norm has a scale and a bias.
    """
    part = summarise_backbone(Recipe(), preset)
    assert round(part.parameters / 1e6, digits) == millions
    assert round(part.macs / 2**30, 1) == gmacs
    assert_documented(preset, part)


@pytest.mark.parametrize("preset", ["tiny", "w18_small"])
def test_other_backbones_are_as_documented(preset):
    assert_documented(preset, summarise_backbone(Recipe(), preset))


def assert_documented(preset, part):
    row = format_backbones({preset: part}).splitlines()[-1]
    assert row.startswith(f"| `{preset}` |") and f"\n{row} " in DOCUMENT.read_text()


def test_backbones_are_counted_at_the_configs_size_with_its_joints(miniature, monkeypatch, capsys):
    monkeypatch.setattr(summary, "BACKBONES", {"tiny": BACKBONES["tiny"]})
    recipe = miniature(input_size=(64, 32), joint_set="crowdpose", model__backbone="w32")
    summary.main(recipe, backbones=True)
    part = summarise_backbone(recipe, "tiny")
    assert capsys.readouterr().out == format_backbones({"tiny": part}) + "\n"
    # Convolutions alone: twice the sides, four times the products; three more joints, three more rows of the head.
    large, more = (miniature(input_size=(128, 64), joint_set=joints) for joints in ("crowdpose", "coco"))
    assert summarise_backbone(large, "tiny").macs == 4 * part.macs
    assert summarise_backbone(more, "tiny").macs - 4 * part.macs == 3 * 16 * 32 * 16


def test_w18_small_is_timms():
    """timm's hrnet_w18_small has 13.19 M parameters, of which those that only classification has are counted here."""
    net = BACKBONES["w18_small"].build(16, jnp.float32, False, False)
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))

    def convolution(kernel, inputs, outputs, bias=False):
        return kernel**2 * inputs * outputs + (2 + bias) * outputs

    widths, heads = [16, 32, 64, 128], [32, 64, 128, 256]
    # The last module makes all four resolutions.
    total = sum(convolution(1, widths[j], widths[i]) for i in range(1, 4) for j in range(i + 1, 4))
    for i in range(1, 4):
        for j in range(i):
            total += (i - j - 1) * convolution(3, widths[j], widths[j]) + convolution(3, widths[j], widths[i])
    # A bottleneck a resolution, which is then halved into the next, whose biases are used; and the classifier.
    for width, head in zip(widths, heads, strict=True):
        bottleneck = convolution(1, width, head) + convolution(3, head, head) + convolution(1, head, 4 * head)
        total += bottleneck + convolution(1, width, 4 * head)
    total += sum(convolution(3, 4 * low, 4 * high, bias=True) for low, high in zip(heads, heads[1:], strict=False))
    total += convolution(1, 1024, 2048, bias=True) + 2048 * 1000 + 1000
    assert round((_count(variables["params"]) + total) / 1e6, 2) == 13.19


@pytest.fixture(scope="module")
def small(small_model):
    """Parts of a small model without and with recomputed blocks: 64 x 32 input, C = 16, decoder width 8."""
    return {remat: summarise(small_model(model__remat=remat)) for remat in ("none", "blocks")}


def test_parts_make_the_whole(small, small_model):
    for parts in small.values():
        assert tuple(parts) == ("HRNet stem", *(f"HRNet stage {k}" for k in range(1, 5)), *PARTS)
        whole = _count(abstract_variables(small_model())["params"])
        assert sum(part.parameters for part in parts.values()) == whole
        assert parts["masks"].parameters == parts["rest"].parameters == 0


def test_macs_of_a_part_are_those_of_its_products(small):
    """Counted by hand, for a map of 16 x 8 with 16 channels, 2 heads of 8, and windows of 8."""
    parts, pixels, channels = small["none"], 16 * 8, 16
    assert parts["coarse head"].macs == pixels * channels * 17
    assert parts["merge"].macs == pixels * 2 * channels * 8
    projections = 2 * 4 * pixels * channels**2
    spatial = 2 * pixels * 8 * 8 * channels  # every pixel meets its window twice: logits and values
    channel = 2 * pixels * channels * 8  # every channel meets its group twice
    assert parts["SC-CA"].macs == projections + spatial + channel
    assert parts["HRNet stem"].macs == 32 * 16 * 27 * 8 + pixels * 72 * 8
    assert parts["masks"].macs == parts["rest"].macs == 0


def test_recomputed_blocks_keep_less_and_count_the_same(small):
    plain, remat = small["none"], small["blocks"]
    for name in plain:
        assert plain[name].macs == remat[name].macs and plain[name].parameters == remat[name].parameters
    within = {name for name in plain if remat[name].kept < plain[name].kept}
    assert within == {"HRNet stage 1", "HRNet stage 2", "HRNet stage 3", "HRNet stage 4", "SGDD"}
    assert sum(p.kept for p in remat.values()) < 0.7 * sum(p.kept for p in plain.values())
    # Of a convolution, the backward pass keeps at least the normalised map: its input is the one before it.
    assert plain["HRNet stem"].kept > 4 * (32 * 16 + 16 * 8) * 8


def test_the_table_sums_up(small, miniature, monkeypatch, capsys):
    monkeypatch.setattr(summary, "summarise", lambda model: small["none"])
    summary.main(miniature())
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    assert [row[0][2:] for row in rows] == ["part", *small["none"], "whole"]
    numbers = np.array([[float(cell.strip("% |")) for cell in row[1:]] for row in rows[1:]])
    # Each of the eleven parts is rounded by itself.
    np.testing.assert_allclose(numbers[:-1].sum(axis=0), numbers[-1], atol=0.6)
    assert numbers[-1, 2] == 100 and "64x64" in printed and "remat=none" in printed


def _count(params):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
