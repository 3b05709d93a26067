"""Submanifold 3x3x3 convolution (Graham et al. 2018, arXiv:1711.10275) in plain torch, and its 1x1x1 sibling.

A table of neighbour rows is built once for each coordinate set. Both directions are then a gather and one matrix
product: the gradient of the input is the same operation with the mirrored kernel, because the neighbour relation of
a submanifold convolution is symmetric. Nothing is scattered, so results do not depend on the order of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spatial import Cells
from .tensor import Sites, SparseTensor, encode

KERNEL = 3
NUM_OFFSETS = KERNEL**3

# Grids up to this many cells (one int32 each) are looked up in a dense table, larger ones by binary search.
_MAX_LOOKUP_CELLS = 1 << 27

# Size of the gathered operand of one matrix product. On a CPU it should stay near the cache, on a GPU it should fill
# the device; either way it bounds the memory of the layer.
_GATHER_BYTES = {"cpu": 1 << 24, "cuda": 1 << 28}


def neighbour_table(sites: Sites) -> Tensor:
    """Rows of the 27 neighbours of each voxel, cached on `sites`.

    Returns:
        ``[N, 27]`` int32 in kernel order (x slowest, each axis -1, 0, +1); N where there is no active voxel.
    """
    return sites.cached("neighbours", lambda: _build_neighbour_table(sites))


def _build_neighbour_table(sites: Sites) -> Tensor:
    device, rows = sites.coords.device, len(sites)
    extent = [size + 2 for size in sites.extent]  # a border of empty cells, so that no neighbour leaves the grid
    codes = encode(sites.coords, extent) + encode(torch.tensor([[0, 1, 1, 1]], device=device), extent)  # [N]
    steps = torch.arange(-1, 2, device=device)
    offsets = torch.cartesian_prod(torch.zeros(1, dtype=steps.dtype, device=device), steps, steps, steps)
    wanted = codes[:, None] + encode(offsets, extent)  # [N, 27]
    num_cells = sites.batch_size * math.prod(extent)
    if num_cells <= _MAX_LOOKUP_CELLS:
        lookup = torch.full((num_cells,), rows, dtype=torch.int32, device=device)
        lookup[codes] = torch.arange(rows, dtype=torch.int32, device=device)
        return lookup[wanted]
    ordered, order = codes.sort()
    position = torch.searchsorted(ordered, wanted).clamp_max(rows - 1)
    return torch.where(ordered[position] == wanted, order[position], rows).int()


def _gathered(feats: Tensor, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield row ranges and their neighbourhoods ``[rows, 27 * C]``, absent neighbours as zeros."""
    channels = feats.shape[1]
    padded = torch.cat([feats, feats.new_zeros(1, channels)])
    row_bytes = NUM_OFFSETS * channels * feats.element_size()
    step = max(1, _GATHER_BYTES.get(feats.device.type, 1 << 28) // row_bytes)
    for start in range(0, len(table), step):
        rows = slice(start, min(start + step, len(table)))
        yield rows, padded.index_select(0, table[rows].flatten()).view(rows.stop - start, -1)


def _convolve(feats: Tensor, matrix: Tensor, table: Tensor) -> Tensor:
    out = feats.new_empty(len(feats), matrix.shape[1])
    for rows, columns in _gathered(feats, table):
        torch.mm(columns, matrix, out=out[rows])
    return out


class _SubmanifoldConvolution(torch.autograd.Function):
    """``feats [N, I], weight [O, 27, I] -> [N, O]``. Neighbourhoods are gathered again for the gradient, not stored."""

    @staticmethod
    def forward(ctx, feats: Tensor, weight: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(feats, weight, table)
        return _convolve(feats, weight.flatten(1).t(), table)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feats, weight, table = ctx.saved_tensors
        grad = grad.contiguous()
        grad_feats = grad_weight = None
        if ctx.needs_input_grad[0]:
            mirrored = weight.flip(1).transpose(0, 1).flatten(0, 1)  # [27 * O, I]
            grad_feats = _convolve(grad, mirrored, table)
        if ctx.needs_input_grad[1]:
            total = torch.zeros(weight.shape[0], NUM_OFFSETS * weight.shape[2], device=grad.device)
            for rows, columns in _gathered(feats, table):
                total += grad[rows].t() @ columns
            grad_weight = total.view_as(weight).to(weight.dtype)
        return grad_feats, grad_weight, None


class _CopyConvolution(torch.autograd.Function):
    """Submanifold convolution of features that fine voxels copy from their coarse cell.

    ``feats [M, I], weight [O, 27, I] -> [N, O]``, equal to `_SubmanifoldConvolution` of ``feats[cell]``. All products
    with the kernel happen on the coarse rows, several times fewer; sums over neighbours, and over the children of a
    cell in the backward pass, are gathers.
    """

    @staticmethod
    def forward(ctx, feats: Tensor, weight: Tensor, table: Tensor, cell: Tensor, children: Tensor) -> Tensor:
        ctx.save_for_backward(feats, weight, table, children)
        matrix = weight.permute(2, 1, 0).flatten(1)  # [I, 27 * O]
        source = torch.cat([cell, cell.new_full((1,), len(feats))]).int()  # absent voxels read a row of zeros
        rows = source[table] * NUM_OFFSETS + torch.arange(NUM_OFFSETS, dtype=torch.int32, device=cell.device)
        return _sum_of_rows(_product_and_zero(feats, matrix).unflatten(1, (NUM_OFFSETS, -1)).flatten(0, 1), rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight, table, children = ctx.saved_tensors
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


class _KernelParameters(nn.Module):
    """Weight ``[out, kx, ky, kz, in]`` and bias ``[out]``, initialised as `torch.nn.Conv3d` does."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, *[kernel_size] * 3, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        bound = 1 / math.sqrt(in_channels * kernel_size**3)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)


class SparseConv3d(nn.Module):
    """Submanifold convolution: a cross-correlation with zero padding, evaluated at the active voxels only.

    A 1x1x1 kernel is applied as the published weights expect it: the stored ``[out, 1, 1, 1, in]`` block is *read* as
    an ``[in, out]`` matrix, without a transpose.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        kernel_size: 3 or 1.
        bias: add a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True) -> None:
        super().__init__()
        if kernel_size not in (1, KERNEL):
            raise ValueError(f"kernel_size must be 1 or 3, got {kernel_size}")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.conv = _KernelParameters(in_channels, out_channels, kernel_size, bias)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"

    def _operands(self, x: SparseTensor) -> tuple[Tensor, Tensor]:
        """Features and weight in one dtype: autocast does not reach into the functions above."""
        feats, weight = x.feats, self.conv.weight
        if torch.is_autocast_enabled(feats.device.type):
            dtype = torch.get_autocast_dtype(feats.device.type)
            feats, weight = feats.to(dtype), weight.to(dtype)
        return feats, weight

    def _with_bias(self, out: Tensor) -> Tensor:
        return out if self.conv.bias is None else out + self.conv.bias.to(out.dtype)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """``[N, in_channels] -> [N, out_channels]``."""
        feats, weight = self._operands(x)
        if self.kernel_size == 1:
            out = feats @ weight.reshape(self.in_channels, self.out_channels)
        else:
            out = _SubmanifoldConvolution.apply(feats, weight.flatten(1, 3), neighbour_table(x.sites))
        return x.replace(self._with_bias(out))

    def forward_copied(self, x: SparseTensor, fine: Sites, cells: Cells) -> SparseTensor:
        """The convolution of `x` copied to the finer grid `fine`, without forming the copies.

        Args:
            x: ``[M, in_channels]`` on the coarse cells.
            fine: the N voxels to evaluate at.
            cells: how they fall into the cells of `x`; see `coarsen` and `subdivided`.

        Returns:
            ``[N, out_channels]``.
        """
        if self.kernel_size == 1:
            coarse = self(x)
            return SparseTensor(coarse.feats.index_select(0, cells.cell), sites=fine)
        feats, weight = self._operands(x)
        out = _CopyConvolution.apply(feats, weight.flatten(1, 3), neighbour_table(fine), cells.cell, cells.children)
        return SparseTensor(self._with_bias(out), sites=fine)
