"""The roofline estimate of a compiled program by part of the network, from its HLO text.

The compiler's estimate is a sum over the operations of the longer of their arithmetic at the peak
and their bytes at the memory's bandwidth. This module computes that sum for each part of the
network, with the padding of tiles.

TPUs from v4 on have a fast memory beside the main one. The compiler's estimate takes it for main
memory, and a copy between the two for four passes. Here only bytes of main memory count, each once.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

import numpy as np

BYTES = dict(pred=1, u8=1, s8=1, u16=2, s16=2, f16=2, bf16=2, u32=4, s32=4, f32=4, u64=8, s64=8)
# Opcodes that move nothing. (Those that end in `-done` are counted where they start.)
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all"}
_WIDEST_KERNEL = 3
_FAST = "S(1)"  # in the layout of an array in fast memory
# Operations and bytes a second by which the compiler (libtpu 0.0.42.1) estimates. They follow from
# its estimates of a product of two 8192x8192 matrices and of a sum over 134M numbers in bfloat16,
# and are up to a fifth below the data sheets'.
RATES = {
    "TPU v2": (22.8e12, 316.8e9),
    "TPU v3": (61.4e12, 429.5e9),
    "TPU v4": (241.2e12, 982.5e9),
    "TPU v5 lite": (197e12, 737.7e9),
    "TPU v5": (394e12, 2350e9),
    "TPU v6 lite": (918e12, 1638e9),
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_LAYOUT = re.compile(r"([\d,]+):T\(([\d,]+)\)")
_FUSED = r"calls=%?([\w.\-]+)"
_LEVEL = re.compile(
    r"/(?:((?:down|up)_\d+)_(?:block|attention)|((?:down|up)_\d+_resample)|(middle))"
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a program.

    Attributes:
      name: its name in the program's text.
      kind: XLA's opcode.
      source: jax's name of its origin (`jit(train_step)/UNet/up_0_block_1/...`).
      flops: operations of its convolutions and matrix products, without those on padding.
      num_bytes: bytes of main memory read and written, with the padding of the arrays' tiles.
      written: shape of the result, as in the program's text.
    """

    name: str
    kind: str
    source: str
    flops: float
    num_bytes: int
    written: str = ""


@dataclasses.dataclass
class Share:
    """The seconds of a part of a program, the seconds of its arithmetic alone, and its bytes."""

    seconds: float = 0.0
    arithmetic_seconds: float = 0.0
    num_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    line: str

    def attribute(self, pattern: str) -> str:
        found = re.search(pattern, self.line)
        return found[1] if found else ""


_Computations = dict[str, list[_Instruction]]


def operations(hlo: str, *, as_estimated: bool = False) -> list[Operation]:
    """Returns the operations of an optimised program's text; those in a loop's body once.

    With `as_estimated`, bytes are counted as in the compiler's estimate: fast memory is taken for
    main memory, and a copy between the two for four passes.
    """
    computations = dict(_computations(hlo))
    entry = re.search(r"^ENTRY %?([\w.\-]+)", hlo, re.MULTILINE)
    if entry is None:
        raise ValueError("the text has no ENTRY: it is no HLO module")
    return list(_operations(entry[1], computations, not as_estimated))


def float32_images(found: Iterable[Operation]) -> list[int]:
    """Returns the bytes of each float32 image that operations write.

    An image has four axes; the second and third are equal, and longer than those of a kernel.
    """
    sizes = []
    for dtype, dimensions, _ in (array for o in found for array in _ARRAY.findall(o.written)):
        axes = [int(n) for n in dimensions.split(",") if n]
        if dtype == "f32" and len(axes) == 4 and axes[1] == axes[2] > _WIDEST_KERNEL:
            sizes.append(BYTES[dtype] * math.prod(axes))
    return sizes


def by_kind(found: Iterable[Operation]) -> dict[str, int]:
    """Returns the bytes that each opcode moves, in falling order; library calls by name."""
    kinds: collections.Counter[str] = collections.Counter()
    for operation in found:
        is_library = operation.kind == "custom-call"
        name = re.sub(r"[.\d]+$", "", operation.name) if is_library else operation.kind
        kinds[name] += operation.num_bytes
    return dict(kinds.most_common())


def by_part(
    found: Iterable[Operation], peak_flops: float, bytes_per_second: float
) -> dict[str, Share]:
    """Sums times and bytes for each part of the U-Net, for collectives and the rest; sorted."""
    parts: dict[str, Share] = collections.defaultdict(Share)
    for operation in found:
        share = parts[_part(operation)]
        arithmetic = operation.flops / peak_flops
        share.seconds += max(arithmetic, operation.num_bytes / bytes_per_second)
        share.arithmetic_seconds += arithmetic
        share.num_bytes += operation.num_bytes
    return dict(sorted(parts.items(), key=lambda item: -item[1].seconds))


def _part(operation: Operation) -> str:
    if operation.kind.removesuffix("-start") in COLLECTIVES:
        return "collectives"
    level = _LEVEL.search(operation.source)
    if level:
        return next(name for name in level.groups() if name)
    ends = re.search(
        r"/(conv_in|conv_out|norm_out|noise_embedding)/|UNet\._to_image", operation.source
    )
    return "first and last convolution" if ends else "rest"


def _computations(hlo: str) -> Iterator[tuple[str, list[_Instruction]]]:
    name, body = "", []
    for line in hlo.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head:
            name, body = head[1], []
            yield name, body
        elif found := _INSTRUCTION.match(line):
            body.append(_Instruction(*found.groups()[:3], _operands(found[4]), line))


def _operands(arguments: str) -> tuple[str, ...]:
    depth = 1
    for end, character in enumerate(arguments):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return tuple(re.findall(r"%([\w.\-]+)", arguments[:end]))
    return ()


def _operations(
    computation: str, computations: _Computations, main_only: bool
) -> Iterator[Operation]:
    shapes = {found.name: found.shape for found in computations[computation]}
    for found in computations[computation]:
        if found.opcode in _FREE or found.opcode.endswith("-done"):
            continue
        if found.opcode in ("while", "call"):
            inner = found.attribute(r"(?:body|to_apply)=%?([\w.\-]+)")
            yield from _operations(inner, computations, main_only)
            continue
        moved = _bytes(found, shapes, computations, main_only)
        source = found.attribute(r'op_name="([^"]*)"')
        flops = _flops(found, shapes, computations)
        yield Operation(found.name, found.opcode, source, flops, moved, found.shape)


def _bytes(
    found: _Instruction, shapes: dict[str, str], computations: _Computations, main_only: bool
) -> int:
    """Returns the bytes of main memory that an instruction moves, or those that are estimated."""
    written = _size(found.shape, main_only)
    if found.opcode == "copy-start":  # its result are the copy, what is copied, and a mark
        return written if main_only else 2 * written
    if found.opcode == "slice-start":  # what is sliced, the slice, and a mark
        whole, part = (array[0] for array in list(_ARRAY.finditer(found.shape))[:2])
        read = 0 if main_only and not _size(whole, main_only) else _size(part)
        moved = read + _size(part, main_only)
        return moved if main_only else 2 * moved
    read = [_size(shapes.get(name, ""), main_only) for name in found.operands]
    if found.opcode == "fusion":
        for index, size in _slices(computations[found.attribute(_FUSED)]):
            read[index] = min(read[index], size)  # none of fast memory
    elif found.opcode == "dynamic-slice":
        read = [written]
    elif found.opcode == "dynamic-update-slice":  # in place
        read, written = read[1:2], read[1]
    return sum(read) + written


def _slices(body: list[_Instruction]) -> Iterator[tuple[int, int]]:
    """Yields index and bytes of those parameters of a fusion of which it reads slices only."""
    for parameter in body:
        if parameter.opcode != "parameter":
            continue
        users = [found for found in body if parameter.name in found.operands]
        if users and all(found.opcode in ("slice", "dynamic-slice") for found in users):
            index = int(parameter.attribute(r"parameter\((\d+)\)"))
            yield index, sum(_size(found.shape) for found in users)


def _flops(found: _Instruction, shapes: dict[str, str], computations: _Computations) -> float:
    """Returns the operations of the convolutions and matrix products of an instruction."""
    if found.opcode == "fusion":
        body = computations[found.attribute(_FUSED)]
        within = {inner.name: inner.shape for inner in body}
        return sum(_flops(inner, within, computations) for inner in body)
    if found.opcode == "convolution":  # on TPUs, matrix products are convolutions, too
        return _convolution_flops(found, shapes)
    if found.opcode == "dot":
        return _product_flops(found, shapes)
    return _library_flops(found, shapes) if found.opcode == "custom-call" else 0.0


def _product_flops(found: _Instruction, shapes: dict[str, str]) -> float:
    left = _dimensions(shapes[found.operands[0]])
    axes = found.attribute(r"lhs_contracting_dim(?:ension)?s\W+([\d,\"]+)")
    return (
        2.0
        * math.prod(_dimensions(found.shape))
        * math.prod(left[int(axis)] for axis in re.findall(r"\d+", axes))
    )


def _library_flops(found: _Instruction, shapes: dict[str, str]) -> float:
    """Returns the operations of a call of cuDNN or cuBLAS, with those on padding."""
    target = found.attribute(r'custom_call_target="([^"]*)"')
    if target.startswith("__cublas$"):
        return _product_flops(found, shapes)
    if not target.startswith("__cudnn$conv"):
        return 0.0
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", found.line)
    first, second = (_dimensions(shapes[name]) for name in found.operands[:2])
    # Operands are image and kernel in the forward pass, cotangent and kernel for the gradient of
    # the image, image and cotangent for that of the kernel.
    kernel, result = {
        "__cudnn$convBackwardInput": (second, first),
        "__cudnn$convBackwardFilter": (_dimensions(found.shape), second),
    }.get(target, (second, _dimensions(found.shape)))
    return 2.0 * math.prod(result) / result[labels[3].index("f")] * math.prod(kernel)


def _convolution_flops(found: _Instruction, shapes: dict[str, str]) -> float:
    """Returns two operations for each product of an element of the image and of the kernel."""
    image, kernel, out = (
        _dimensions(shape) for shape in (*(shapes[name] for name in found.operands), found.shape)
    )
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", found.line)
    window = found.attribute(r"window=\{([^}]*)\}")
    spatial = [label for label in labels[1] if label.isdigit()]

    def of_window(name: str, default: str) -> list[str]:
        value = re.search(rf"{name}=([\d_x\-]+)", window)
        return value[1].split("x") if value else [default] * len(spatial)

    products = math.prod(out) * kernel[labels[2].index("i")]
    names = (("size", "1"), ("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"))
    settings = [of_window(*name) for name in (*names, ("rhs_dilate", "1"))]
    for label, size, stride, pad, base, spread in zip(spatial, *settings, strict=True):
        length, steps = image[labels[1].index(label)], out[labels[3].index(label)]
        low = int(re.match(r"-?\d+", pad)[0])
        taps, places = np.arange(int(size)) * int(spread), np.arange(steps) * int(stride) - low
        at = taps[:, None] + places  # in the dilated image
        inside = (at >= 0) & (at <= (length - 1) * int(base)) & (at % int(base) == 0)
        products *= int(inside.sum()) / steps
    return 2.0 * products


def _dimensions(shape: str) -> list[int]:
    return [int(n) for n in _ARRAY.search(shape)[2].split(",") if n]


def _size(shape: str, main_only: bool = False) -> int:
    """Returns the bytes of an array, or of all arrays of a tuple, padded to whole tiles.

    With `main_only`, arrays in fast memory have none.
    """
    total = 0
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        if main_only and _FAST in layout:
            continue
        sizes = [int(n) for n in dimensions.split(",") if n]
        tiled = _LAYOUT.match(layout)
        if tiled and len(sizes) > 1:
            minor_to_major = [int(axis) for axis in tiled[1].split(",")]
            for axis, tile in zip(minor_to_major, reversed(tiled[2].split(",")), strict=False):
                sizes[axis] = -(-sizes[axis] // int(tile)) * int(tile)
        total += BYTES.get(dtype, 0) * math.prod(sizes)
    return total


def count_collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Returns number, and unpadded bytes of the results, of a program's collectives by kind.

    Asynchronous ones count once, where they end.
    """
    found: dict[str, dict[str, int]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
    for result, kind in re.findall(rf"= (.+?) ({'|'.join(COLLECTIVES)})(?:-done)?\(", hlo):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
        found[kind]["count"] += 1
        found[kind]["bytes"] += sum(
            BYTES.get(dtype, 4) * math.prod(int(n) for n in axes.split(",") if n)
            for dtype, axes in arrays
        )
    return dict(found)
