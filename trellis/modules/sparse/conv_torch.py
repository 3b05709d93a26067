"""Submanifold 3x3x3 convolution (Graham et al. 2018, arXiv:1711.10275) in plain torch: the reference.

With the table of neighbours both directions are a gather and one matrix product: the gradient of the input is the same
operation with the mirrored kernel, because the neighbour relation of a submanifold convolution is symmetric. Nothing is
scattered, so results do not depend on the order of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .neighbours import NUM_OFFSETS, neighbour_table
from .spatial import Cells
from .tensor import Sites

# Size of the gathered operand of one matrix product. On a CPU it should stay near the cache, on a GPU it should fill
# the device; either way it bounds the memory of the layer.
_GATHER_BYTES = {"cpu": 1 << 24, "cuda": 1 << 28}


def _gathered(feats: Tensor, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield row ranges and their neighbourhoods ``[rows, 27 * C]``, absent neighbours as zeros."""
    channels = feats.shape[1]
    padded = torch.cat([feats, feats.new_zeros(1, channels)])
    row_bytes = NUM_OFFSETS * channels * feats.element_size()
    step = max(1, _GATHER_BYTES.get(feats.device.type, 1 << 28) // row_bytes)
    for start in range(0, len(table), step):
        rows = slice(start, min(start + step, len(table)))
        yield rows, padded.index_select(0, table[rows].flatten()).view(rows.stop - start, -1)


def convolve(feats: Tensor, weight: Tensor, sites: Sites) -> Tensor:
    """Submanifold convolution: ``feats [N, I]`` on `sites`, ``weight [O, 27, I] -> [N, O]``."""

    def product(rows: Tensor, kernel: Tensor) -> Tensor:
        matrix = kernel.flatten(1).t()  # [27 * I, O]
        out = rows.new_empty(len(rows), matrix.shape[1])
        for part, columns in _gathered(rows, neighbour_table(sites)):
            torch.mm(columns, matrix, out=out[part])
        return out

    return SubmanifoldConvolution.apply(feats, weight, sites, product)


def convolve_copied(feats: Tensor, weight: Tensor, coarse: Sites, fine: Sites, cells: Cells) -> Tensor:
    """`convolve` of ``feats [M, I]`` copied from the cells of `coarse` to the N voxels of `fine`: ``[N, O]``.

    All products with the kernel happen on the coarse rows, several times fewer; the rest is sums of gathered rows.
    `cells` says how the voxels fall into the cells; see `coarsen` and `subdivided`.
    """

    def product(rows: Tensor, kernel: Tensor) -> Tensor:
        matrix = kernel.permute(2, 1, 0).flatten(1)  # [I, 27 * O]
        source = copied_table(fine, cells, len(rows)) * NUM_OFFSETS
        source = source + torch.arange(NUM_OFFSETS, dtype=torch.int32, device=rows.device)
        return _sum_of_rows(_product_and_zero(rows, matrix).unflatten(1, (NUM_OFFSETS, -1)).flatten(0, 1), source)

    return CopyConvolution.apply(feats, weight, fine, cells.children, product)


def copied_table(fine: Sites, cells: Cells, absent: int) -> Tensor:
    """``[N, 27]`` int32: the coarse cell of each neighbour of a fine voxel, `absent` where there is no voxel."""
    return torch.cat([cells.cell, cells.cell.new_full((1,), absent)]).int()[neighbour_table(fine)]


# (feats [N, I], weight [O, 27, I]) -> [N, O]
Product = Callable[[Tensor, Tensor], Tensor]


class SubmanifoldConvolution(torch.autograd.Function):
    """``feats [N, I], weight [O, 27, I] -> [N, O]`` by any `product`, which also yields the gradient of the input.

    Neighbourhoods are gathered again for the gradient of the weight, not stored.
    """

    @staticmethod
    def forward(ctx, feats: Tensor, weight: Tensor, sites: Sites, product: Product) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.sites, ctx.product = sites, product
        return product(feats, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_feats = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_feats = ctx.product(grad, weight.flip(1).transpose(0, 2))
        if ctx.needs_input_grad[1]:
            total = torch.zeros(weight.shape[0], NUM_OFFSETS * weight.shape[2], device=grad.device)
            for rows, columns in _gathered(feats, neighbour_table(ctx.sites)):
                total += grad[rows].t() @ columns
            grad_weight = total.view_as(weight).to(weight.dtype)
        return grad_feats, grad_weight, None, None


class CopyConvolution(torch.autograd.Function):
    """Convolution of copies, ``feats [M, I], weight [O, 27, I] -> [N, O]`` by any `product`.

    Both gradients are products on the coarse rows; sums over the children of a cell are gathers.
    """

    @staticmethod
    def forward(ctx, feats: Tensor, weight: Tensor, fine: Sites, children: Tensor, product: Product) -> Tensor:
        ctx.save_for_backward(feats, weight, children)
        ctx.fine = fine
        return product(feats, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight, children = ctx.saved_tensors
        table = neighbour_table(ctx.fine)
        padded_table = torch.cat([table, table.new_full((1, NUM_OFFSETS), len(grad))])
        rows = padded_table[children].transpose(1, 2).flatten(0, 1)  # [M * 27, K]
        columns = _sum_of_rows(torch.cat([grad, grad.new_zeros(1, grad.shape[1])]), rows)
        columns = columns.view(len(feats), -1)  # [M, 27 * O], kernel mirrored
        grad_feats = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_feats = columns @ weight.flip(1).transpose(0, 1).flatten(0, 1)
        if ctx.needs_input_grad[1]:
            mirrored = (columns.t() @ feats).view(NUM_OFFSETS, -1, feats.shape[1])
            grad_weight = mirrored.flip(0).transpose(0, 1)
        return grad_feats, grad_weight, None, None, None


def _product_and_zero(feats: Tensor, matrix: Tensor) -> Tensor:
    """`feats @ matrix` with a row of zeros after it."""
    out = feats.new_empty(len(feats) + 1, matrix.shape[1])
    torch.mm(feats, matrix, out=out[:-1])
    out[-1].zero_()
    return out


def _sum_of_rows(values: Tensor, rows: Tensor) -> Tensor:
    """``values [V, C], rows [R, K] -> [R, C]``: the sum of K rows, accumulated in float32."""
    return F.embedding_bag(rows, values, mode="sum")
