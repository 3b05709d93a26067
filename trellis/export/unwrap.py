"""Texture coordinates: smooth a copy, cut it into charts and pack them (the xatlas package)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xatlas
from scipy import sparse

from trellis.errors import InputError
from trellis.export.surface import Surface


@dataclass(frozen=True, eq=False)
class Atlas:
    """A surface with texture coordinates: vertices are repeated along chart borders.

    Attributes:
        vertices: [V, 3] float32, object frame.
        faces: [F, 3] int32.
        uvs: [V, 2] float32 in [0, 1]; (0, 0) is the lower left corner of the texture, v points up.
        normals: [V, 3] float32 unit normals, equal on both sides of a chart border.
        num_charts: how many charts the surface was cut into.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uvs: np.ndarray
    normals: np.ndarray
    num_charts: int = 0

    @property
    def surface(self) -> Surface:
        return Surface(self.vertices, self.faces)


@dataclass(frozen=True)
class UnwrapOptions:
    """How to cut and pack.

    Attributes:
        smooth_steps: Taubin steps on the copy that is cut. Charts break at noise, and their number drives the time.
        max_cost: how uneven a chart may get before a new one begins; higher gives fewer, more stretched charts.
        iterations: rounds of growing charts again from better seeds.
        padding: empty texels between charts.
        brute_force: pack as tightly as possible, slowly.
    """

    smooth_steps: int = 5
    max_cost: float = 2.0
    iterations: int = 1
    padding: int = 2
    brute_force: bool = False


def unwrap(surface: Surface, texture_size: int = 1024, options: UnwrapOptions | None = None) -> Atlas:
    """Cut the surface into charts and pack them for a square texture of `texture_size` texels.

    The charts are found on a smoothed copy and applied to the given vertices. Time grows with the number of faces
    times the number of charts: 10k smooth faces take under a second, 20k noisy ones several.

    Raises:
        InputError: the texture size is not between 16 and 8192.
    """
    if not 16 <= texture_size <= 8192:
        raise InputError(f"The texture size must lie between 16 and 8192, but is {texture_size}.")
    options = options or UnwrapOptions()
    charts = xatlas.ChartOptions()
    charts.max_cost, charts.max_iterations = options.max_cost, options.iterations
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bruteForce = texture_size, options.padding, options.brute_force
    packing.bilinear = True

    smoothed = taubin_smooth(surface, options.smooth_steps)
    atlas = xatlas.Atlas()
    atlas.add_mesh(smoothed.vertices, smoothed.faces.astype(np.uint32))
    atlas.generate(charts, packing)
    origin, faces, uvs = atlas.get_mesh(0)
    if len(faces) != len(surface.faces) or not np.isfinite(uvs).all():
        raise RuntimeError(f"xatlas returned {len(faces)} of {len(surface.faces)} faces, or broken coordinates.")
    return Atlas(
        surface.vertices[origin],
        np.ascontiguousarray(faces, dtype=np.int32),
        np.ascontiguousarray(uvs, dtype=np.float32).clip(0, 1),
        surface.vertex_normals()[origin],
        atlas.chart_count,
    )


def taubin_smooth(surface: Surface, steps: int, shrink: float = 0.5, grow: float = -0.53) -> Surface:
    """Low-pass filter without shrinkage: alternate a positive and a negative Laplacian step (Taubin 1995).

    Vertices on open borders stay where they are.
    """
    if steps == 0:
        return surface
    count = len(surface.vertices)
    edges = surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    links = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(count, count)).tocsr()
    border = np.unique((links - links.T).nonzero()[0])
    neighbours = ((links + links.T) > 0).astype(np.float64)
    mean = sparse.diags(1 / np.maximum(neighbours.sum(axis=1).A1, 1)) @ neighbours
    points = surface.vertices.astype(np.float64)
    for _ in range(steps):
        for factor in (shrink, grow):
            change = mean @ points - points
            change[border] = 0
            points += factor * change
    return Surface(points.astype(np.float32), surface.faces, surface.colors)
