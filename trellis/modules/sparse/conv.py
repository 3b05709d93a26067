"""Submanifold 3x3x3 convolution (Graham et al. 2018, arXiv:1711.10275) in plain torch, and its 1x1x1 sibling.

A table of neighbour rows is built once for each coordinate set. Both directions are then a gather and one matrix
product: the gradient of the input is the same operation with the mirrored kernel, because the neighbour relation of
a submanifold convolution is symmetric. Nothing is scattered, so results do not depend on the order of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .tensor import Sites, SparseTensor, encode

KERNEL = 3
NUM_OFFSETS = KERNEL**3

# Grids up to this many cells (one int32 each) are looked up in a dense table, larger ones by binary search.
_MAX_LOOKUP_CELLS = 1 << 27

# Size of the gathered operand of one matrix product. On a CPU it should stay near the cache, on a GPU it should fill
# the device; either way it bounds the memory of the layer.
_GATHER_BYTES = {"cpu": 1 << 25, "cuda": 1 << 28}


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

    def forward(self, x: SparseTensor) -> SparseTensor:
        feats, weight = x.feats, self.conv.weight
        if torch.is_autocast_enabled(feats.device.type):
            dtype = torch.get_autocast_dtype(feats.device.type)
            feats, weight = feats.to(dtype), weight.to(dtype)
        if self.kernel_size == 1:
            out = feats @ weight.reshape(self.in_channels, self.out_channels)
        else:
            out = _SubmanifoldConvolution.apply(feats, weight.flatten(1, 3), neighbour_table(x.sites))
        return x.replace(out if self.conv.bias is None else out + self.conv.bias.to(out.dtype))
