"""The ring of cameras that export looks from, and what they see: colours from either representation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from trellis.export.surface import Surface
from trellis.renderers import gaussian_raster, mesh_raster
from trellis.renderers.cameras import Cameras, hammersley
from trellis.representations.gaussian import Gaussian

FOV = 40.0  # degrees; narrow, so that slanted surfaces are seen about as densely in the corners as in the middle

_NEAR = 1e-6  # `surround` keeps its distance from objects of any size


@dataclass(frozen=True, eq=False)
class View:
    """One picture of the object.

    Attributes:
        color: [H, W, 3] float32 sRGB in [0, 1], not multiplied by alpha.
        alpha: [H, W] float32 coverage in [0, 1].
        depth: [H, W] float32 mean distance along the view axis of what was blended, or None where it is exact.
    """

    color: np.ndarray
    alpha: np.ndarray
    depth: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Hit:
    """What a camera sees of a surface, per pixel."""

    screen: torch.Tensor  # [V, 3] projected vertices
    raster: mesh_raster.Raster

    @property
    def face_ids(self) -> np.ndarray:
        """[H, W] int32, -1 where empty."""
        return self.raster.face_ids.numpy()

    @property
    def barycentrics(self) -> np.ndarray:
        """[H, W, 3] float32, perspective correct."""
        return self.raster.barycentrics.numpy()

    @property
    def depth(self) -> np.ndarray:
        """[H, W] float32 along the view axis, 0 where empty."""
        return self.raster.depth.numpy()


def surround(surface: Surface, num_views: int, resolution: int) -> Cameras:
    """Cameras spread evenly over a sphere, at the distance where the surface's bounding sphere just fits the image."""
    center, radius = surface.bounding_sphere()
    radius = max(radius, 1e-6)
    distance = 1.02 * radius / math.sin(math.radians(FOV) / 2)
    cameras = hammersley(num_views, radius=distance, fov=FOV, size=resolution)
    to_center = torch.eye(4)
    to_center[:3, 3] = torch.from_numpy(-center).float()
    return Cameras(cameras.extrinsics @ to_center, cameras.intrinsics, cameras.image_size)


class Looker:
    """Rasterises one surface again and again (its arrays are converted once)."""

    def __init__(self, surface: Surface) -> None:
        self._vertices = torch.from_numpy(surface.vertices)
        self._faces = torch.from_numpy(surface.faces)

    def look(self, cameras: Cameras, index: int) -> Hit:
        """What camera `index` sees."""
        height, width = cameras.height_width(index)
        with torch.no_grad():
            screen = mesh_raster.project(self._vertices, cameras.extrinsics[index], cameras.intrinsics[index])
            return Hit(screen, mesh_raster.rasterize(screen, self._faces, height, width, near=_NEAR))

    def interpolate(self, hit: Hit, attributes: np.ndarray) -> np.ndarray:
        """Vertex attributes [V, C] as an image [H, W, C], 0 where empty."""
        with torch.no_grad():
            return mesh_raster.interpolate(torch.from_numpy(attributes), hit.screen, self._faces, hit.raster).numpy()


def gaussian_views(gaussian: Gaussian, cameras: Cameras) -> Iterator[View]:
    """Pictures of the splats."""
    gaussian = gaussian.to("cpu")
    with torch.no_grad():  # once for all pictures
        colors = gaussian.raw_color.clamp_min(0)
        fields = gaussian.get_xyz, gaussian.get_rotation, gaussian.get_scaling, gaussian.get_opacity[:, 0], colors
    for k in range(len(cameras)):
        with torch.no_grad():
            image = gaussian_raster.render_gaussians(
                *fields, cameras.extrinsics[k], cameras.intrinsics[k], *cameras.height_width(k)
            )
        alpha = image.alpha[0].numpy()
        # The splats were blended over black: dividing by the coverage recovers their own mean colour.
        coverage = image.alpha[0].clamp_min(1e-3)
        color = (image.color / coverage).clamp_(0, 1).permute(1, 2, 0).contiguous().numpy()
        yield View(color, alpha, (image.depth[0] / coverage).numpy())


def surface_views(surface: Surface, cameras: Cameras) -> Iterator[View]:
    """Pictures of the vertex colours, unlit."""
    looker = Looker(surface)
    for k in range(len(cameras)):
        hit = looker.look(cameras, k)
        yield View(looker.interpolate(hit, surface.colors), (hit.face_ids >= 0).astype(np.float32))
