"""Visibility by nvdiffrast (Laine et al. 2020, arXiv:2011.03277); attributes and antialiasing are this package's.

Its licence allows research and evaluation only, hence it is used by name alone. What is relied on of its interface:
`rasterize(context, pos [1, V, 4] clip space float32, tri [F, 3] int32, resolution=[H, W])` returns, first, [1, H, W, 4]
with the row of y = -1 first and the 1-based triangle in the last channel, 0 where nothing is seen.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import nvdiffrast.torch as nvdiffrast
import torch
from torch import Tensor

from trellis.renderers.mesh_torch import antialias, interpolate, raster_images

__all__ = ["antialias", "find_visible", "interpolate", "self_test"]

_STEP = 8  # it draws images whose sides are multiples of this


def find_visible(screen: Tensor, faces: Tensor, height: int, width: int, near: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `mesh_numba.find_visible`."""
    triangles = faces.to(screen.device, torch.int32)
    # Faces that reach behind the near plane are dropped whole, where nvdiffrast would cut them.
    kept = (screen[triangles.long(), 2].amin(1) >= near).nonzero().squeeze(1)
    rows, columns = (-(-size // _STEP) * _STEP for size in (height, width))
    if len(kept) == 0:
        face_ids = torch.full((height, width), -1, dtype=torch.int32, device=screen.device)
    else:
        positions = _clip_space(screen.float(), rows, columns, near)[None]
        image, _ = nvdiffrast.rasterize(
            _context(screen.device), positions, triangles[kept].contiguous(), resolution=[rows, columns]
        )
        drawn = image[0, :height, :width, 3].long()
        face_ids = torch.where(drawn > 0, kept[(drawn - 1).clamp_min(0)], -1).int()
    return raster_images(screen, triangles, face_ids)


def self_test(device: Any) -> None:
    """Draw one triangle."""
    screen = torch.tensor([[1.0, 1, 1], [6, 1, 1], [1, 6, 1]], device=device)
    find_visible(screen, torch.tensor([[0, 1, 2]], device=device), 8, 8, 0.1)


def _clip_space(screen: Tensor, height: int, width: int, near: float) -> Tensor:
    """``[V, 3]`` (x, y in pixels, depth) -> ``[V, 4]``: w is the depth, z / w runs from -1 at `near` to 1 far away."""
    x, y, depth = screen.unbind(1)
    return torch.stack(
        [(2 * x / width - 1) * depth, (2 * y / height - 1) * depth, depth - 2 * near, depth], dim=1
    ).contiguous()


@lru_cache(maxsize=4)
def _context(device: torch.device) -> Any:
    return nvdiffrast.RasterizeCudaContext(device=device)
