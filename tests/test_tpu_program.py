"""HBM traffic as it is read from a compiled program's text: padding, on-chip memory, slices, loops, collectives."""

import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks.tpu_program import estimated_cycles, hbm_traffic
from benchmarks.xla_cost import collectives, slice_mesh
from dpose_jax.runtime import sharding

MODULE = """
HloModule jit_step, is_scheduled=true

%fused (p: f32[8,128]) -> f32[8,128] {{
  %p = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  ROOT %n = f32[8,128]{{1,0:T(8,128)}} negate(%p)
}}

%body (a: (f32[8,128])) -> (f32[8,128]) {{
  %a = (f32[8,128]{{1,0:T(8,128)}}) parameter(0)
  %g = f32[8,128]{{1,0:T(8,128)}} get-tuple-element(%a), index=0
  %f = f32[8,128]{{1,0:T(8,128)}} fusion(%g), kind=kLoop, calls=%fused
  ROOT %t = (f32[8,128]{{1,0:T(8,128)}}) tuple(%f)
}}

%condition (a: (f32[8,128])) -> pred[] {{
  %a = (f32[8,128]{{1,0:T(8,128)}}) parameter(0)
  ROOT %c = pred[]{{:S(2)}} constant(true)
}}

ENTRY %main.1 (x: f32[8,128], y: bf16[3,5,32]) -> f32[8,128] {{
  %x = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %y = bf16[3,5,32]{{2,0,1:T(8,128)(2,1)}} parameter(1)
{lines}
}}
"""
X = 8 * 128 * 4
Y = 5 * 8 * 128 * 2  # axes 0 and 2 are tiled: 3 becomes 8, 32 becomes 128
LINES = {
    "  ROOT %f = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused": 2 * X,
    "  ROOT %f = f32[8,128]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%fused": X,
    "  ROOT %f = (f32[8,128]{1,0:T(8,128)S(1)}, bf16[3,5,32]{2,0,1:T(8,128)(2,1)}) fusion(%x, %y)": X + 2 * Y,
    # Into VMEM, read once; and within HBM, read and written.
    "  %s = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)\n"
    "  ROOT %d = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%s)": X,
    "  %s = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)\n"
    "  ROOT %d = f32[8,128]{1,0:T(8,128)} copy-done(%s)": 2 * X,
    # A slice moves its own bytes, and its pieces are joined where they lie.
    "  %s = ((bf16[3,5,32]{2,0,1:T(8,128)(2,1)}), bf16[3,1,32]{2,0,1:T(8,128)(2,1)S(1)}, s32[]) slice-start(%y)\n"
    "  %d = bf16[3,1,32]{2,0,1:T(8,128)(2,1)S(1)} slice-done(%s)\n"
    '  ROOT %j = bf16[3,1,32]{2,0,1:T(8,128)(2,1)} custom-call(%d), custom_call_target="ConcatBitcast"': Y // 5,
    "  %t = (f32[8,128]{1,0:T(8,128)}) tuple(%x)\n"
    "  ROOT %w = (f32[8,128]{1,0:T(8,128)}) while(%t), condition=%condition, body=%body": 2 * X,
    "  %r = f32[8,128]{1,0:T(8,128)} all-reduce-start(%x), channel_id=1\n"
    "  ROOT %d = f32[8,128]{1,0:T(8,128)} all-reduce-done(%r)": 2 * X,
    "  %r = (f32[8,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}) all-gather-start(%x), channel_id=1\n"
    "  ROOT %d = f32[16,128]{1,0:T(8,128)} all-gather-done(%r)": 3 * X,
}


@pytest.mark.parametrize(("lines", "moved"), LINES.items(), ids=range(len(LINES)))
def test_bytes_of_one_instruction(lines, moved):
    assert hbm_traffic(MODULE.format(lines=lines)) == moved


GPU = """
HloModule jit_step, is_scheduled=true

%copies (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %c = bf16[8,128]{1,0} copy(%p)
}

ENTRY %main.1 (x: bf16[8,128], k: bf16[128,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %k = bf16[128,128]{1,0} parameter(1)
  %cudnn-conv.1 = (bf16[8,128]{1,0}, u8[4096]{0}) custom-call(%x, %k), custom_call_target="__cudnn$convForward"
  %y = bf16[8,128]{1,0} get-tuple-element(%cudnn-conv.1), index=0
  ROOT %z = bf16[8,128]{1,0} call(%y), to_apply=%copies
}
"""


def test_bytes_of_a_gpu_are_those_of_operands_and_results():
    """XLA counts -1 byte for a call of cuDNN. What it works in lies beside the result, and does not count."""
    one, kernel = 2 * 8 * 128, 2 * 128 * 128
    assert hbm_traffic(GPU) == (one + kernel + one) + 2 * one
    other = GPU.replace("__cudnn$convForward", "of_ours")  # its bytes may be a result
    assert hbm_traffic(other) == hbm_traffic(GPU) + 4096


def test_cycles_are_those_of_what_runs():
    """Of an instruction, and of a loop's body once; not of what is inside of a fusion, nor those that are unknown."""
    lines = """  %n = f32[8,128]{1,0:T(8,128)} negate(%x), cycles=5
  %t = (f32[8,128]{1,0:T(8,128)}) tuple(%n)
  ROOT %w = (f32[8,128]{1,0:T(8,128)}) while(%t), condition=%condition, body=%body"""
    module = MODULE.format(lines=lines).replace("calls=%fused", "calls=%fused, cycles=700")
    module = module.replace("negate(%p)", "negate(%p), cycles=30000").replace("tuple(%f)", "tuple(%f), cycles=-1")
    assert estimated_cycles(re.sub(r"cycles=(-?\d+)", r'backend_config={"estimated_cycles":"\1"}', module)) == 705


def test_text_of_no_program_is_refused():
    with pytest.raises(ValueError, match="it has no ENTRY"):
        hbm_traffic("HloModule jit_step")


def test_a_collective_in_pieces_counts_once():
    """Its pieces lie in many fusions, which hide it; the others have channels of their own."""
    piece = "  %all-gather.{} = s32[16,128]{{1,0:T(8,128)}} all-gather(%p), channel_id=7, dimensions={{0}}"
    lines = [piece.format(number) for number in range(5)]
    lines.append("  %r = f32[8]{0} all-reduce(%q), channel_id=8")
    assert collectives(lines) == {
        "all-gather": {"count": 1, "bytes": 16 * 128 * 4},
        "all-reduce": {"count": 1, "bytes": 32},
    }


def test_traffic_of_known_programs():
    """What must move: an operand and a result. The compiler's own count has the product between them too, in VMEM."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install -e '.[topology]'")
    everywhere = sharding.replicated(slice_mesh("v5e:1x1"))

    def compiled(function, *shape):
        one = jax.jit(function, in_shardings=everywhere, out_shardings=everywhere)
        return one.lower(jax.ShapeDtypeStruct(shape, jnp.bfloat16)).compile()

    padded = compiled(lambda x: x + 1, 4096, 4090)
    assert hbm_traffic(padded.as_text()) == padded.cost_analysis()["bytes accessed"] == 2 * 2 * 4096 * 4096
    products = compiled(lambda x: jnp.sin(x @ x) @ x, 1024, 1024)
    assert hbm_traffic(products.as_text()) == 2 * 2 * 1024 * 1024 < products.cost_analysis()["bytes accessed"] / 4
