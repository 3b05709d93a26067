"""A z-buffer as a Triton kernel; what follows from the visible faces is done in torch on the same device."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trellis.renderers.mesh_torch import antialias, interpolate, raster_images
from trellis.renderers.mesh_visibility import Raster

__all__ = ["antialias", "find_visible", "interpolate", "self_test"]

_TILE = 8
_LAST = 0x7FFFFFFF  # of 31 bits, the largest face index


@triton.jit(do_not_specialize=["height", "width"])
def _fill_kernel(screen, faces, nearest, height, width, near, TILE: tl.constexpr):
    """One program per face: raises nearest[pixel] to (bits of 1 / depth) << 32 | (2^31 - 1 - face) where it is covered.

    Positive floats order like their bits, so the largest key is the nearest face, and of equals the first. screen
    [V, 3] float64, because edge functions cancel; faces [F, 3] int32; nearest [H * W] int64, 0 where nothing is seen.
    """
    face = tl.program_id(0)
    a = tl.load(faces + face * 3).to(tl.int64) * 3
    b = tl.load(faces + face * 3 + 1).to(tl.int64) * 3
    c = tl.load(faces + face * 3 + 2).to(tl.int64) * 3
    ax, ay, az = tl.load(screen + a), tl.load(screen + a + 1), tl.load(screen + a + 2)
    bx, by, bz = tl.load(screen + b), tl.load(screen + b + 1), tl.load(screen + b + 2)
    cx, cy, cz = tl.load(screen + c), tl.load(screen + c + 1), tl.load(screen + c + 2)
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    if (tl.minimum(az, tl.minimum(bz, cz)) >= near) & (tl.abs(area) >= 1e-8):
        # Bounds are clamped as floats: a far coordinate does not fit an integer.
        low_x, low_y = tl.minimum(ax, tl.minimum(bx, cx)) - 0.5, tl.minimum(ay, tl.minimum(by, cy)) - 0.5
        high_x, high_y = tl.maximum(ax, tl.maximum(bx, cx)) - 0.5, tl.maximum(ay, tl.maximum(by, cy)) - 0.5
        left = tl.ceil(tl.minimum(tl.maximum(low_x, 0.0), width.to(tl.float64))).to(tl.int32)
        top = tl.ceil(tl.minimum(tl.maximum(low_y, 0.0), height.to(tl.float64))).to(tl.int32)
        right = tl.floor(tl.maximum(tl.minimum(high_x, width.to(tl.float64) - 1.0), -1.0)).to(tl.int32)
        bottom = tl.floor(tl.maximum(tl.minimum(high_y, height.to(tl.float64) - 1.0), -1.0)).to(tl.int32)
        za, zb, zc = 1.0 / az, 1.0 / bz, 1.0 / cz
        rows = tl.arange(0, TILE)[:, None]
        columns = tl.arange(0, TILE)[None, :]
        tile_y = top
        while tile_y <= bottom:
            tile_x = left
            while tile_x <= right:
                y = (tile_y + rows).to(tl.float64) + 0.5 - ay
                x = (tile_x + columns).to(tl.float64) + 0.5 - ax
                ub = x * ((cy - ay) / area) - y * ((cx - ax) / area)
                uc = y * ((bx - ax) / area) - x * ((by - ay) / area)
                ua = 1.0 - ub - uc
                covered = (ua >= -1e-9) & (ub >= -1e-9) & (uc >= -1e-9)
                covered &= (tile_y + rows <= bottom) & (tile_x + columns <= right)
                inverse = (ua * za + ub * zb + uc * zc).to(tl.float32)
                key = (inverse.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (0x7FFFFFFF - face.to(tl.int64))
                tl.atomic_max(nearest + (tile_y + rows).to(tl.int64) * width + tile_x + columns, key, mask=covered)
                tile_x += TILE
            tile_y += TILE


def find_visible(screen: Tensor, faces: Tensor, height: int, width: int, near: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `mesh_numba.find_visible`."""
    points, triangles = screen.double().contiguous(), faces.to(screen.device, torch.int32).contiguous()
    nearest = torch.zeros(height, width, dtype=torch.int64, device=screen.device)
    if len(triangles):
        # Multiplication and addition stay apart, rounded like the reference's: fused they move the edges of faces whose
        # terms all but cancel.
        _fill_kernel[(len(triangles),)](
            points, triangles, nearest, height, width, near, TILE=_TILE, num_warps=2, enable_fp_fusion=False
        )
    face_ids = torch.where(nearest > 0, _LAST - (nearest & _LAST), -1).int()
    return raster_images(points, triangles, face_ids)


def self_test(device: Any) -> None:
    """Draw one triangle and blend its outline."""
    screen = torch.tensor([[1.0, 1, 1], [6, 1, 1], [1, 6, 1]], device=device)
    faces = torch.tensor([[0, 1, 2]], device=device)
    raster = Raster(*find_visible(screen, faces, 8, 8, 0.1), near=0.1)
    antialias(interpolate(screen, screen, faces, raster, faces), screen, faces, raster, 1.0)
