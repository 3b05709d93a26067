"""Layers on sparse tensors that need the batch layout, and thin wrappers that let them stand in `nn.Sequential`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from trellis import backends

from .tensor import SparseTensor


class SparseSiLU(nn.Module):
    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.replace(F.silu(x.feats))


class SparseLinear(nn.Linear):
    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.replace(super().forward(x.feats))


class SparseGroupNorm32(nn.GroupNorm):
    """Group norm whose statistics run over all voxels of one sample, computed in float32, returned in the input dtype.

    Same constructor as `torch.nn.GroupNorm`.
    """

    def forward(self, x: SparseTensor, silu: bool = False) -> SparseTensor:
        """``[N, C] -> [N, C]``; `silu` applies that activation to the result."""
        norms = backends.of("norms", x.device)
        settings = self.num_groups, self.weight, self.bias, self.eps, silu
        return x.replace(norms.group_norm(x.feats, x.sites, *settings))
