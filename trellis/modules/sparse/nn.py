"""Layers on sparse tensors that need the batch layout, and thin wrappers that let them stand in `nn.Sequential`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tensor import Sites, SparseTensor, rows_per_sample


class SparseSiLU(nn.Module):
    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.replace(F.silu(x.feats))


class SparseLinear(nn.Linear):
    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.replace(super().forward(x.feats))


def _sum_per_sample(values: Tensor, sites: Sites) -> Tensor:
    """``[N, G] -> [B, G]``. Samples are laid out as padded rows: a plain sum is exact and runs in parallel."""
    if sites.batch_size == 1:
        return values.sum(0, keepdim=True)

    def build() -> Tensor:
        counts = torch.tensor(sites.counts, device=values.device)
        slots = torch.arange(max(sites.counts), device=values.device)
        rows = slots + (counts.cumsum(0) - counts)[:, None]
        return torch.where(slots < counts[:, None], rows, len(sites))

    padded_rows = sites.cached("padded_rows", build)
    padded = torch.cat([values, values.new_zeros(1, values.shape[1])])
    return padded.index_select(0, padded_rows.flatten()).view(*padded_rows.shape, -1).sum(1)


class SparseGroupNorm32(nn.GroupNorm):
    """Group norm whose statistics run over all voxels of one sample, computed in float32, returned in the input dtype.

    Same constructor as `torch.nn.GroupNorm`.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:
        groups = x.feats.float().unflatten(1, (self.num_groups, -1))  # [N, G, C / G]
        counts = x.sites.cached("counts_tensor", lambda: torch.tensor(x.sites.counts, device=x.device).clamp_min(1))
        sizes = counts[:, None] * groups.shape[2]  # [B, 1]
        mean = _sum_per_sample(groups.sum(2), x.sites) / sizes  # [B, G]
        groups = groups - rows_per_sample(mean, x.sites)[..., None]
        variance = _sum_per_sample(groups.square().sum(2), x.sites) / sizes
        feats = (groups * rows_per_sample((variance + self.eps).rsqrt(), x.sites)[..., None]).flatten(1)
        if self.affine:
            feats = feats * self.weight.float() + self.bias.float()
        return x.replace(feats.to(x.dtype))
