"""Triton z-buffer behind `training.data.rasterise`; imported only on CUDA machines."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from training.data.rasterise import EMPTY


@triton.jit
def _nearest_kernel(screen, view, keys, size, TILE: tl.constexpr):
    triangle = tl.program_id(0)
    base = screen + triangle * 9
    x0 = tl.load(base)
    y0 = tl.load(base + 1)
    z0 = tl.load(base + 2)
    x1 = tl.load(base + 3)
    y1 = tl.load(base + 4)
    z1 = tl.load(base + 5)
    x2 = tl.load(base + 6)
    y2 = tl.load(base + 7)
    z2 = tl.load(base + 8)
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    nearest = tl.minimum(z0, tl.minimum(z1, z2))
    if (nearest > 1e-3) & (tl.abs(area) > 1e-9):
        limit = size.to(tl.float32)
        left = tl.maximum(tl.floor(tl.minimum(x0, tl.minimum(x1, x2)) - 0.5), 0.0).to(tl.int32)
        right = tl.minimum(tl.ceil(tl.maximum(x0, tl.maximum(x1, x2))), limit).to(tl.int32)
        top = tl.maximum(tl.floor(tl.minimum(y0, tl.minimum(y1, y2)) - 0.5), 0.0).to(tl.int32)
        bottom = tl.minimum(tl.ceil(tl.maximum(y0, tl.maximum(y1, y2))), limit).to(tl.int32)
        image = tl.load(view + triangle).to(tl.int64) * size * size
        inverse_area = 1.0 / area
        rows = tl.arange(0, TILE)[:, None]
        columns = tl.arange(0, TILE)[None, :]
        for tile_y in range(top, bottom, TILE):
            for tile_x in range(left, right, TILE):
                py = (tile_y + rows).to(tl.float32) + 0.5
                px = (tile_x + columns).to(tl.float32) + 0.5
                w0 = ((x1 - px) * (y2 - py) - (x2 - px) * (y1 - py)) * inverse_area
                w1 = ((x2 - px) * (y0 - py) - (x0 - px) * (y2 - py)) * inverse_area
                w2 = 1.0 - w0 - w1
                depth = 1.0 / (w0 / z0 + w1 / z1 + w2 / z2)
                inside = (w0 >= 0) & (w1 >= 0) & (w2 >= 0) & (tile_y + rows < bottom) & (tile_x + columns < right)
                # Positive floats order like their bit patterns.
                bits = depth.to(tl.int32, bitcast=True).to(tl.int64)
                key = (bits << 32) | triangle.to(tl.int64)
                pixel = image + (tile_y + rows) * size + (tile_x + columns)
                tl.atomic_min(keys + pixel, key, mask=inside)


def nearest_triangle_keys(screen: Tensor, view: Tensor, views: int, size: int, tile: int = 8) -> Tensor:
    """Per pixel the least (depth bits << 32 | triangle), `EMPTY` where nothing is seen. [views, size, size] int64."""
    keys = torch.full((views, size, size), EMPTY, dtype=torch.int64, device=screen.device)
    if len(screen):
        _nearest_kernel[(len(screen),)](screen.contiguous(), view.contiguous(), keys, size, TILE=tile, num_warps=2)
    return keys
