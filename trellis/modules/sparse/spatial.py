"""Coarser and finer grids: pooling, its inverse, and subdivision into octants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .tensor import Sites, SparseTensor, encode


@dataclass(frozen=True)
class Cells:
    """How fine voxels fall into coarse cells."""

    cell: Tensor  # [N] int64, the coarse row of each fine voxel
    children: Tensor  # [M, K] int64, the fine rows of each coarse cell, N where there is none


def coarsen(sites: Sites, factor: int = 2) -> tuple[Sites, Cells]:
    """Cells of `factor`^3 voxels that hold an active voxel, rows sorted by (batch, x, y, z); cached on `sites`."""

    def build() -> tuple[Sites, Cells]:
        batch, xyz = sites.coords[:, :1], sites.coords[:, 1:]
        corner = xyz.div(factor, rounding_mode="floor")
        extent = [(size - 1) // factor + 1 for size in sites.extent]
        codes, cell = torch.unique(encode(torch.cat([batch, corner], dim=1), extent), return_inverse=True)
        columns = []
        for size in reversed(extent):
            columns.append(codes % size)
            codes = codes.div(size, rounding_mode="floor")
        coords = torch.stack([codes, *reversed(columns)], dim=1).to(sites.coords.dtype)
        slot = encode(torch.cat([torch.zeros_like(batch), xyz - corner * factor], dim=1), [factor] * 3)
        rows = len(sites)
        children = torch.full((len(coords), factor**3), rows, device=cell.device)
        children[cell, slot] = torch.arange(rows, device=cell.device)
        return Sites(coords, sites.batch_size), Cells(cell, children)

    return sites.cached(("coarsen", factor), build)


def subdivided(sites: Sites) -> tuple[Sites, Cells]:
    """All 8 children of each voxel, 2c + {0, 1}^3 in lexicographic order (z fastest); cached on `sites`."""

    def build() -> tuple[Sites, Cells]:
        corners = torch.cartesian_prod(*[torch.arange(2)] * 3).to(sites.coords)  # [8, 3]
        coords = sites.coords.repeat_interleave(8, dim=0).view(-1, 8, 4)
        coords[..., 1:] = coords[..., 1:] * 2 + corners
        children = torch.arange(8 * len(sites), device=coords.device).view(-1, 8)
        return Sites(coords.view(-1, 4), sites.batch_size), Cells(children.flatten() // 8, children)

    return sites.cached("subdivided", build)


def downsample(x: SparseTensor, factor: int = 2) -> SparseTensor:
    """Pool cells of `factor`^3 voxels.

    A pooled feature is the sum of the members divided by **one more than** their number. The published weights were
    trained with this quirk (a mean that counts one zero row), so a true mean would not do.
    """
    coarse, cells = coarsen(x.sites, factor)
    total = x.feats.new_zeros(len(coarse), x.feats.shape[1]).index_add(0, cells.cell, x.feats)
    count = (cells.children < len(x.sites)).sum(1, keepdim=True)
    return SparseTensor(total / (count + 1).to(total.dtype), sites=coarse)


def upsample(x: SparseTensor, fine: Sites, factor: int = 2) -> SparseTensor:
    """Copy each cell of `x` to the voxels of `fine` in it; `x` has to live on the coarsened `fine`."""
    coarse, cells = coarsen(fine, factor)
    if len(coarse) != len(x.sites):
        raise ValueError(f"{len(x.sites)} cells are not the coarser grid of these {len(fine)} voxels.")
    return SparseTensor(x.feats.index_select(0, cells.cell), sites=fine)


def subdivide(x: SparseTensor) -> SparseTensor:
    """Split each voxel into 8 with the same feature; see `subdivided`."""
    fine, _ = subdivided(x.sites)
    return SparseTensor(x.feats[:, None].expand(-1, 8, -1).flatten(0, 1), sites=fine)
