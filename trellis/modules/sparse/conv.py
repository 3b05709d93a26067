"""The layer of submanifold convolution, 3x3x3 or 1x1x1; `trellis.backends` says which implementation does the work."""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor, nn

from trellis import backends

from .neighbours import KERNEL
from .spatial import Cells
from .tensor import Sites, SparseTensor


def _backend(feats: Tensor) -> ModuleType:
    return backends.of("sparse_convolution", feats.device)


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
        """Features and weight in one dtype: autocast does not reach into the backends."""
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
            out = _backend(feats).convolve(feats, weight.flatten(1, 3), x.sites)
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
        out = _backend(feats).convolve_copied(feats, weight.flatten(1, 3), x.sites, fine, cells)
        return SparseTensor(self._with_bias(out), sites=fine)
