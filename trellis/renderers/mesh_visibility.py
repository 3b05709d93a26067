"""Which triangle is seen at which pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trellis import backends
from trellis.errors import InputError
from trellis.renderers.mesh_topology import face_table

NEAR = 0.01  # depth in world units; the object fills a unit cube and is looked at from outside


@dataclass(frozen=True, eq=False)
class Raster:
    """What is seen at each pixel centre.

    Attributes:
        face_ids: [H, W] int32, -1 where nothing is seen.
        barycentrics: [H, W, 3] float32, perspective-correct weights of the face's three vertices, 0 where empty.
        depth: [H, W] float32, camera z in world units, 0 where empty.
        near: depth below which vertices were cut away.
    """

    face_ids: torch.Tensor
    barycentrics: torch.Tensor
    depth: torch.Tensor
    near: float

    @property
    def mask(self) -> torch.Tensor:
        """[H, W] bool, True where a face is seen."""
        return self.face_ids >= 0


def rasterize(screen: torch.Tensor, faces: torch.Tensor, height: int, width: int, near: float = NEAR) -> Raster:
    """Find the nearest face at every pixel centre. Not differentiable; both sides of a face are seen.

    A face with a vertex nearer than `near` (or behind the camera) is dropped whole rather than cut. A face without
    area on screen is never seen. Of two faces at the same depth the one with the lower index wins.

    Args:
        screen: [V, 3] float, (x, y) in pixels and camera depth, as `project` gives it.
        faces: [F, 3] integer.
        height, width: image size in pixels.
        near: smallest depth kept, > 0.

    Returns:
        A `Raster` on the device of `screen`.

    Raises:
        InputError: a value that is not finite, a wrong shape, or an index beyond the vertices.
    """
    if height < 1 or width < 1:
        raise InputError(f"The image must be at least one pixel, but is {height} x {width}.")
    if not near > 0:
        raise InputError(f"The near depth must be positive, but is {near}.")
    if screen.ndim != 2 or screen.shape[1] != 3:
        raise InputError(f"Screen positions must be [V, 3] (x, y, depth), but came as {list(screen.shape)}.")
    if not bool(torch.isfinite(screen).all()):
        bad = int((~torch.isfinite(screen)).any(dim=1).sum())
        raise InputError(f"{bad} of {len(screen)} vertices have a position that is not finite.")
    face_table(faces).require_vertices(len(screen))
    backend = backends.of("mesh_rasterisation", screen.device)
    return Raster(*backend.find_visible(screen.detach(), faces, height, width, near), near=near)


def screen_array(screen: torch.Tensor) -> np.ndarray:
    """Screen positions [V, 3] as a C-contiguous array on the CPU, in float64 because edge functions cancel."""
    return screen.detach().to("cpu", torch.float64).contiguous().numpy()
