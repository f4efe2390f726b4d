"""What a program compiled for a TPU or GPU costs, read from its text: bytes through its memory (HBM), cycles (ours).

On TPUs the compiler's own "bytes accessed" also counts what stays in the vector memory on the chip (VMEM, S(1) in a
layout), and pieces that are joined there without moving. On GPUs it counts a call of cuDNN or cuBLAS as -1 byte.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

_COMPUTATION = re.compile(r"(ENTRY )?%([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\(((?:[^()]|\([^()]*\))*)\)(.*)")
_SHAPE = re.compile(r"\b[a-z]+(\d*)\w*\[([\d,]*)\](?:\{([^{}]*)\})?")
_BODY = re.compile(r"(?:body|condition|to_apply|true_computation|false_computation)=%([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
# What a call of cuDNN or cuBLAS works in lies beside its result, as bytes: how many of them it touches is unknown.
_LIBRARY, _SCRATCH = '="__cu', re.compile(r"\bu8\[\d+\]\{0[^{}]*\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# These name memory and move none. What ends in -done was counted where it started.
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "replica-id"}
_CONTROL = {"while", "conditional", "call"}


class _Instruction(NamedTuple):
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str


def hbm_traffic(text: str) -> int:
    """Bytes read from and written to HBM by one run of a compiled program, on one device.

    `text` is the optimized program, scheduled, of `compiled.as_text()`. Arrays count with the padding of their tiles,
    every operand of a fusion as read once and whole, a loop's body once; the scratch of cuDNN and cuBLAS does not
    count. Raises ValueError for any other text.
    """
    return _total(text, _moved)


def estimated_cycles(text: str) -> int:
    """Cycles of one core that the compiler expects of one run, the sum over its instructions; a loop's body once.

    The text gives them for what computes; copies and collectives, which overlap with it, have none.
    """
    return _total(text, lambda one, shapes: sum(map(int, _CYCLES.findall(one.rest))))


def _total(text: str, cost: Callable[[_Instruction, dict[str, str]], int]) -> int:
    """The sum of `cost`, of an instruction and of all shapes beside it, over the instructions that one run executes."""
    computations, entry = _parse(text)

    def total(name: str) -> int:
        instructions = computations[name]
        shapes = {key: instruction.shape for key, instruction in instructions.items()}
        found = 0
        for one in instructions.values():
            if one.opcode in _CONTROL:
                called = _BODY.findall(one.rest)
                called += [part.strip(" %") for part in ",".join(_BRANCHES.findall(one.rest)).split(",") if part]
                found += sum(map(total, called))
            else:
                found += cost(one, shapes)
        return found

    return total(entry)


def _parse(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """The instructions of each computation by name, and the name of the entry."""
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            name, shape, opcode, operands, rest = found.groups()
            current[name] = _Instruction(shape, opcode, tuple(re.findall(r"%([\w.-]+)", operands)), rest)
    if not entry:
        raise ValueError("the text is not that of a compiled program: it has no ENTRY")
    return computations, entry


def _moved(one: _Instruction, shapes: dict[str, str]) -> int:
    """Bytes of HBM that one instruction reads and writes."""
    if one.opcode in _FREE or one.opcode.endswith("-done") or '"ConcatBitcast"' in one.rest:
        return 0
    if one.opcode in ("copy-start", "slice-start"):  # the shape names both ends; a slice moves its own bytes alone
        ends = _SHAPE.findall(one.shape)[:2]
        return min(map(_padded_bytes, ends)) * sum(map(_in_hbm, ends))
    touched = _SHAPE.findall(_SCRATCH.sub("", one.shape) if _LIBRARY in one.rest else one.shape)
    if not (one.opcode.endswith("-start") and len(touched) > 1):  # an asynchronous one's shape has its operands too
        touched += [shape for name in one.operands for shape in _SHAPE.findall(shapes.get(name, ""))]
    return sum(map(_padded_bytes, filter(_in_hbm, touched)))


def _in_hbm(shape: tuple[str, str, str]) -> bool:
    """Whether the layout names no other memory, such as S(1), VMEM."""
    return "S(" not in shape[2]


def _padded_bytes(shape: tuple[str, str, str]) -> int:
    """Bytes of (bits, sizes, layout); sizes that are tiled are rounded up to whole tiles."""
    bits, sizes, layout = shape
    lengths = [int(size) for size in sizes.split(",") if size]
    order, _, tiles = layout.partition(":")
    if tile := re.match(r"T\(([\d,]+)\)", tiles):
        lengths = [lengths[int(axis)] for axis in order.split(",") if axis]  # the fastest varying first
        for axis, side in enumerate(reversed(tile[1].split(","))):
            if axis < len(lengths):
                lengths[axis] = -(-lengths[axis] // int(side)) * int(side)
    return math.prod(lengths) * int(bits or 8) // 8
