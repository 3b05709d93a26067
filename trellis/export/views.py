"""The ring of cameras that export looks from, and what they see: colours from either representation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from trellis import backends
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

    color: torch.Tensor
    alpha: torch.Tensor
    depth: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> View:
        """The same picture on another device."""
        depth = None if self.depth is None else self.depth.to(device)
        return View(self.color.to(device), self.alpha.to(device), depth)


@dataclass(frozen=True, eq=False)
class Hit:
    """What a camera sees of a surface, per pixel."""

    screen: torch.Tensor  # [V, 3] projected vertices
    raster: mesh_raster.Raster

    @property
    def face_ids(self) -> torch.Tensor:
        """[H, W] int32, -1 where empty."""
        return self.raster.face_ids

    @property
    def barycentrics(self) -> torch.Tensor:
        """[H, W, 3] float32, perspective correct."""
        return self.raster.barycentrics

    @property
    def depth(self) -> torch.Tensor:
        """[H, W] float32 along the view axis, 0 where empty."""
        return self.raster.depth


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
    """Rasterises one surface on a device, again and again (its arrays are moved there once)."""

    def __init__(self, surface: Surface, device: torch.device | str = "cpu") -> None:
        self._vertices = torch.from_numpy(surface.vertices).to(device)
        self._faces = torch.from_numpy(surface.faces).to(device)

    def look(self, cameras: Cameras, index: int) -> Hit:
        """What camera `index` sees; fastest for cameras on the surface's device."""
        height, width = cameras.height_width(index)
        with torch.no_grad():
            screen = mesh_raster.project(self._vertices, cameras.extrinsics[index], cameras.intrinsics[index])
            return Hit(screen, mesh_raster.rasterize(screen, self._faces, height, width, near=_NEAR))

    def interpolate(self, hit: Hit, attributes: np.ndarray) -> torch.Tensor:
        """Vertex attributes [V, C] as an image [H, W, C], 0 where empty."""
        with torch.no_grad():
            values = torch.from_numpy(attributes).to(self._vertices.device)
            return mesh_raster.interpolate(values, hit.screen, self._faces, hit.raster)


def gaussian_views(gaussian: Gaussian, cameras: Cameras, device: torch.device | str = "cpu") -> Iterator[View]:
    """Pictures of the splats, drawn on a device, or on the CPU if what splats there works on that."""
    device = backends.place("gaussian_splatting", device)
    gaussian, cameras = gaussian.to(device), cameras.to(device)
    with torch.no_grad():  # once for all pictures
        colors = gaussian.raw_color.clamp_min(0)
        fields = gaussian.get_xyz, gaussian.get_rotation, gaussian.get_scaling, gaussian.get_opacity[:, 0], colors
    for k in range(len(cameras)):
        with torch.no_grad():
            image = gaussian_raster.render_gaussians(
                *fields, cameras.extrinsics[k], cameras.intrinsics[k], *cameras.height_width(k)
            )
        # The splats were blended over black: dividing by the coverage recovers their own mean colour.
        coverage = image.alpha[0].clamp_min(1e-3)
        color = (image.color / coverage).clamp_(0, 1).permute(1, 2, 0).contiguous()
        yield View(color, image.alpha[0], image.depth[0] / coverage)


def surface_views(surface: Surface, cameras: Cameras, device: torch.device | str = "cpu") -> Iterator[View]:
    """Pictures of the vertex colours, unlit."""
    device = backends.place("mesh_rasterisation", device)
    looker, cameras = Looker(surface, device), cameras.to(device)
    for k in range(len(cameras)):
        hit = looker.look(cameras, k)
        yield View(looker.interpolate(hit, surface.colors), (hit.face_ids >= 0).float())
