"""Submanifold 3x3x3 convolution as one Triton kernel: neighbours are gathered straight into matrix products.

Nothing is stored between gather and product, so the layer needs no memory beyond its output. Convolving features that
voxels copy from their cell needs fewer products still: the 27 neighbours of a voxel lie in 8 cells, which 8 depends on
the voxel's place in its own cell, so the kernel's taps are summed beforehand into 8 kernels of 2x2x2 cells.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import conv_torch
from .neighbours import NUM_OFFSETS, neighbours_by_tap
from .spatial import Cells
from .tensor import Sites

PLACES = 8  # of a voxel in a cell of 2x2x2, lexicographic with z fastest


@triton.jit(do_not_specialize=["rows", "absent"])
def _convolve_kernel(
    feats, weight, table, taps, out, out_rows, rows, absent,
    IN: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr, PLACES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """out[row(n, p)] = sum over t < TAPS of weight[p, t] @ feats[table[taps[p, t], n]].

    feats [absent, IN], weight [PLACES, TAPS, IN, OUT], table [27, rows] int32 with `absent` for none, taps [PLACES,
    TAPS] int32, out_rows [rows, PLACES] int64 (unused for PLACES 1, where row(n, 0) = n).
    """
    place = tl.program_id(2)
    n = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_row, is_out = n < rows, o < OUT
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    for tap in range(TAPS):
        column = tl.load(taps + place * TAPS + tap)
        source = tl.load(table + column.to(tl.int64) * rows + n, mask=is_row, other=absent)
        present = source < absent
        if tl.sum(present.to(tl.int32)) > 0:
            first = feats + source.to(tl.int64)[:, None] * IN
            matrix = weight + (place * TAPS + tap).to(tl.int64) * IN * OUT
            for start in range(0, IN, BLOCK_IN):
                i = start + tl.arange(0, BLOCK_IN)
                a = tl.load(first + i[None, :], mask=present[:, None] & (i < IN)[None, :], other=0.0)
                b = tl.load(matrix + i[:, None] * OUT + o[None, :], mask=(i < IN)[:, None] & is_out[None, :], other=0.0)
                total = tl.dot(a, b, total, input_precision="ieee")
    row = n if PLACES == 1 else tl.load(out_rows + n * PLACES + place, mask=is_row, other=0)
    target = out + row[:, None] * OUT + o[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_out[None, :])


def convolve(feats: Tensor, weight: Tensor, sites: Sites) -> Tensor:
    """See `conv_torch.convolve`; the gradient of the weight is the reference's."""

    def product(rows: Tensor, kernel: Tensor) -> Tensor:
        matrices = kernel.permute(1, 2, 0).contiguous()[None]  # [1, 27, I, O]
        return _launch(rows, matrices, neighbours_by_tap(sites), _all_taps(rows.device), None)

    return conv_torch.SubmanifoldConvolution.apply(feats, weight, sites, product)


def convolve_copied(feats: Tensor, weight: Tensor, coarse: Sites, fine: Sites, cells: Cells) -> Tensor:
    """See `conv_torch.convolve_copied`; gradients are the reference's."""

    def product(rows: Tensor, kernel: Tensor) -> Tensor:
        if len(fine) == PLACES * len(rows):  # every cell has all its children
            taps = _taps_of_places(rows.device)
            return _launch(rows, _summed_taps(kernel), neighbours_by_tap(coarse), taps, cells.children)
        table = conv_torch.copied_table(fine, cells, len(rows)).t().contiguous()
        return _launch(rows, kernel.permute(1, 2, 0).contiguous()[None], table, _all_taps(rows.device), None)

    return conv_torch.CopyConvolution.apply(feats, weight, fine, cells.children, product)


def self_test(device: Any) -> None:
    """Convolve one voxel."""
    sites = Sites(torch.zeros(1, 4, dtype=torch.int32, device=device))
    convolve(torch.ones(1, 16, device=device), torch.ones(16, NUM_OFFSETS, 16, device=device), sites)


def _launch(feats: Tensor, matrices: Tensor, table: Tensor, taps: Tensor, out_rows: Tensor | None) -> Tensor:
    """``feats [M, I], matrices [P, T, I, O], table [27, N] -> [N * P, O]``."""
    places, num_taps, width_in, width_out = matrices.shape
    rows = table.shape[1]
    out = feats.new_empty(rows * places, width_out)
    wide = feats.element_size() > 2  # float32 tiles take twice the registers
    block_rows, block_in = (64, 16) if wide else (128, 32)
    block_out = min(64 if wide else 128, max(16, triton.next_power_of_2(width_out)))
    grid = triton.cdiv(rows, block_rows), triton.cdiv(width_out, block_out), places
    _convolve_kernel[grid](
        feats.contiguous(), matrices, table, taps, out, out if out_rows is None else out_rows, rows, len(feats),
        IN=width_in, OUT=width_out, TAPS=num_taps, PLACES=places,
        BLOCK_ROWS=block_rows, BLOCK_OUT=block_out, BLOCK_IN=block_in,
        num_warps=8 if block_rows * block_out >= 128 * 128 else 4, num_stages=3,
    )  # fmt: skip
    return out


@lru_cache(maxsize=8)
def _all_taps(device: torch.device) -> Tensor:
    return torch.arange(NUM_OFFSETS, dtype=torch.int32, device=device)[None]


# Per axis and place (0 or 1): the cells that a voxel's three neighbours fall into, and which neighbours those are.
_AXIS = ({-1: (0,), 0: (1, 2)}, {0: (0, 1), 1: (2,)})


@lru_cache(maxsize=8)
def _taps_of_places(device: torch.device) -> Tensor:
    """``[8, 8]`` int32: the columns of a cell's neighbour table that hold the cells around a voxel, by its place."""
    rows = [
        [9 * (x + 1) + 3 * (y + 1) + (z + 1) for x, y, z in product(*(_AXIS[axis] for axis in place))]
        for place in product((0, 1), repeat=3)
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device)


@lru_cache(maxsize=8)
def _summation(device: torch.device) -> Tensor:
    """``[8 places, 8 cells, 27 taps]`` of zeros and ones: which taps read which cell."""
    sums = torch.zeros(PLACES, PLACES, 3, 3, 3)
    for p, place in enumerate(product((0, 1), repeat=3)):
        for c, (xs, ys, zs) in enumerate(product(*(_AXIS[axis].values() for axis in place))):
            for x, y, z in product(xs, ys, zs):
                sums[p, c, x, y, z] = 1
    return sums.flatten(2).to(device)


def _summed_taps(weight: Tensor) -> Tensor:
    """``weight [O, 27, I] -> [8, 8, I, O]``, summed in float32."""
    return torch.einsum("pct,oti->pcio", _summation(weight.device), weight.float()).to(weight.dtype).contiguous()
