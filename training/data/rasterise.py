"""Many small triangles into many small images: which triangle does each pixel see?

On a CUDA device a Triton kernel, one program per triangle, keeps the nearest by a 64-bit atomic minimum on
(depth bits, triangle). On a CPU the package's own z-buffer does one view at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

EMPTY = torch.iinfo(torch.int64).max


def rasterise(screen: Tensor, view: Tensor, views: int, size: int) -> tuple[Tensor, Tensor]:
    """Visible triangle and depth per pixel.

    screen [T, 3, 3]: pixel x, pixel y and camera depth of each triangle's corners; view [T] the image it belongs to.
    Triangles with a corner at depth <= 1e-3 are dropped. Returns triangle [views, size, size] int64 (-1 where empty)
    and depth [views, size, size] float32 (inf where empty).
    """
    if screen.is_cuda:
        from training.data.rasterise_triton import nearest_triangle_keys

        keys = nearest_triangle_keys(screen, view, views, size)
        empty = keys == EMPTY
        depth = (keys >> 32).to(torch.int32).view(torch.float32)
        return torch.where(empty, -1, keys & 0xFFFFFFFF), torch.where(empty, torch.inf, depth)
    return _rasterise_cpu(screen, view, views, size)


def _rasterise_cpu(screen: Tensor, view: Tensor, views: int, size: int) -> tuple[Tensor, Tensor]:
    from trellis.renderers import mesh_raster

    triangle = torch.full((views, size, size), -1, dtype=torch.int64)
    depth = torch.full((views, size, size), torch.inf)
    for index in range(views):
        members = torch.nonzero((view == index) & (screen[:, :, 2] > 1e-3).all(1))[:, 0]
        if len(members) == 0:
            continue
        faces = torch.arange(3 * len(members)).reshape(-1, 3)
        raster = mesh_raster.rasterize(screen[members].reshape(-1, 3), faces, size, size)
        ids = raster.face_ids.long()
        hit = ids >= 0
        triangle[index][hit] = members[ids[hit]]
        depth[index][hit] = raster.depth[hit]
    return triangle, depth
