"""Which voxels are neighbours: a table built once for each coordinate set."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .tensor import Sites, encode

KERNEL = 3
NUM_OFFSETS = KERNEL**3

# Grids up to this many cells (one int32 each) are looked up in a dense table, larger ones by binary search.
_MAX_LOOKUP_CELLS = 1 << 27

def neighbour_table(sites: Sites) -> Tensor:
    """Rows of the 27 neighbours of each voxel, cached on `sites`.

    Returns:
        ``[N, 27]`` int32 in kernel order (x slowest, each axis -1, 0, +1); N where there is no active voxel.
    """

    def build() -> Tensor:
        codes, steps, find = _search(sites)
        return find(codes[:, None] + steps)

    return sites.cached("neighbours", build)


def neighbours_by_tap(sites: Sites) -> Tensor:
    """The same table as ``[27, N]``, built tap by tap: large grids need no 64-bit copy of the whole of it."""

    def build() -> Tensor:
        codes, steps, find = _search(sites)
        table = torch.empty(NUM_OFFSETS, len(codes), dtype=torch.int32, device=codes.device)
        for row, step in zip(table, steps.tolist(), strict=True):
            row.copy_(find(codes + step))
        return table

    return sites.cached("neighbours by tap", build)


def _search(sites: Sites) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Cell numbers of the voxels [N], steps to the 27 neighbours [27], and a function from cell numbers to rows."""
    device, rows = sites.coords.device, len(sites)
    extent = [size + 2 for size in sites.extent]  # a border of empty cells, so that no neighbour leaves the grid
    codes = encode(sites.coords, extent) + encode(torch.tensor([[0, 1, 1, 1]], device=device), extent)  # [N]
    axis = torch.arange(-1, 2, device=device)
    steps = encode(torch.cartesian_prod(torch.zeros(1, dtype=axis.dtype, device=device), axis, axis, axis), extent)
    num_cells = sites.batch_size * math.prod(extent)
    if num_cells <= _MAX_LOOKUP_CELLS:
        lookup = torch.full((num_cells,), rows, dtype=torch.int32, device=device)
        lookup[codes] = torch.arange(rows, dtype=torch.int32, device=device)
        return codes, steps, lookup.__getitem__
    ordered, order = codes.sort()

    def find(wanted: Tensor) -> Tensor:
        position = torch.searchsorted(ordered, wanted).clamp_max(rows - 1)
        return torch.where(ordered[position] == wanted, order[position], rows).int()

    return codes, steps, find
