"""Coarser and finer grids: pooling, its inverse, and subdivision into octants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .tensor import Sites, SparseTensor, encode


@dataclass(frozen=True)
class Coarsening:
    """A coarser grid and how the fine voxels fall into its cells."""

    sites: Sites
    cell: Tensor  # [N] int64, the coarse row of each fine voxel
    count: Tensor  # [M] int64, fine voxels in each coarse cell


def coarsen(sites: Sites, factor: int) -> Coarsening:
    """Cells of `factor`^3 voxels that hold an active voxel, rows sorted by (batch, x, y, z); cached on `sites`."""

    def build() -> Coarsening:
        coords = sites.coords.clone()
        coords[:, 1:] = coords[:, 1:].div(factor, rounding_mode="floor")
        extent = [(size - 1) // factor + 1 for size in sites.extent]
        codes, cell, count = torch.unique(encode(coords, extent), return_inverse=True, return_counts=True)
        columns = []
        for size in reversed(extent):
            columns.append(codes % size)
            codes = codes.div(size, rounding_mode="floor")
        coords = torch.stack([codes, *reversed(columns)], dim=1).to(sites.coords.dtype)
        return Coarsening(Sites(coords, sites.batch_size), cell, count)

    return sites.cached(("coarsen", factor), build)


def downsample(x: SparseTensor, factor: int = 2) -> SparseTensor:
    """Pool cells of `factor`^3 voxels.

    A pooled feature is the sum of the members divided by **one more than** their number. The published weights were
    trained with this quirk (a mean that counts one zero row), so a true mean would not do.
    """
    coarse = coarsen(x.sites, factor)
    total = x.feats.new_zeros(len(coarse.sites), *x.feats.shape[1:]).index_add(0, coarse.cell, x.feats)
    divisor = (coarse.count + 1).to(total.dtype).reshape(-1, *[1] * (total.ndim - 1))
    return SparseTensor(total / divisor, sites=coarse.sites)


def upsample(x: SparseTensor, fine: Sites, factor: int = 2) -> SparseTensor:
    """Copy each cell of `x` to the voxels of `fine` in it; `x` has to live on the coarsened `fine`."""
    coarse = coarsen(fine, factor)
    if len(coarse.sites) != len(x.sites):
        raise ValueError(f"{len(x.sites)} cells are not the coarser grid of these {len(fine)} voxels")
    return SparseTensor(x.feats.index_select(0, coarse.cell), sites=fine)


def subdivide(x: SparseTensor) -> SparseTensor:
    """Split each voxel into 8 with the same feature: children 2c + {0, 1}^3 in lexicographic order, z fastest."""

    def build() -> Sites:
        corners = torch.cartesian_prod(*[torch.arange(2)] * 3).to(x.coords)  # [8, 3]
        children = x.coords.repeat_interleave(8, dim=0).view(-1, 8, 4)
        children[..., 1:] = children[..., 1:] * 2 + corners
        return Sites(children.view(-1, 4), x.sites.batch_size)

    sites = x.sites.cached("subdivide", build)
    feats = x.feats[:, None].expand(-1, 8, *x.feats.shape[1:]).flatten(0, 1)
    return SparseTensor(feats, sites=sites)
