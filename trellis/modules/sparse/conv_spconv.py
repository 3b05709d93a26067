"""Submanifold convolution by spconv 2.x, whose kernels read the same ``[out, x, y, z, in]`` weights.

`trellis/__init__.py` sets SPCONV_ALGO=native where nothing else is set, before spconv can be imported.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import spconv.pytorch as spconv
import torch
from torch import Tensor
from torch.func import functional_call

from .neighbours import KERNEL, NUM_OFFSETS
from .spatial import Cells
from .tensor import Sites


def convolve(feats: Tensor, weight: Tensor, sites: Sites) -> Tensor:
    """See `conv_torch.convolve`."""
    grid = spconv.SparseConvTensor(feats, sites.coords.int(), list(sites.extent), sites.batch_size)
    # Pairs of neighbours are kept with the voxels, as all other tables are.
    grid.indice_dict = sites.cached("spconv pairs", dict)
    layer = _layer(weight.shape[2], weight.shape[0])
    kernel = weight.unflatten(1, (KERNEL,) * 3)
    return functional_call(layer, {"weight": kernel}, (grid,)).features


def convolve_copied(feats: Tensor, weight: Tensor, coarse: Sites, fine: Sites, cells: Cells) -> Tensor:
    """See `conv_torch.convolve_copied`; here the copies are made."""
    return convolve(feats.index_select(0, cells.cell), weight, fine)


def self_test(device: Any) -> None:
    """Convolve one voxel."""
    sites = Sites(torch.zeros(1, 4, dtype=torch.int32, device=device))
    convolve(torch.ones(1, 16, device=device), torch.ones(16, NUM_OFFSETS, 16, device=device), sites)


@lru_cache(maxsize=64)
def _layer(width_in: int, width_out: int) -> torch.nn.Module:
    """A layer for its sizes and settings; its own weight is never used."""
    native = spconv.ConvAlgo.Native
    return spconv.SubMConv3d(width_in, width_out, KERNEL, bias=False, indice_key="neighbours", algo=native)
