"""How far two surfaces lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from trellis.export.surface import Surface
from trellis.renderers.numba_runtime import exclusive, kernel, prange

_CANDIDATES = 12  # nearest samples whose faces are measured exactly


@dataclass(frozen=True)
class SurfaceDistance:
    """Distances between samples of one surface and another surface, object units.

    Attributes:
        hausdorff: the largest, over both directions.
        mean: the mean, over both directions.
    """

    hausdorff: float
    mean: float


def surface_distance(a: Surface, b: Surface, samples: int = 20_000, seed: int = 0) -> SurfaceDistance:
    """The symmetric Hausdorff and mean distance of two surfaces, from points spread over each by area.

    The distance of a point is exact to the faces of the twelve samples or face middles of the other surface nearest
    to it, so it is never too small and hardly ever too large. What lies between the points is not looked at: the
    Hausdorff distance may be larger than reported by a little less than their spacing.
    """
    rng = np.random.default_rng(seed)
    points_a, faces_a = sample_surface(a, samples, rng)
    points_b, faces_b = sample_surface(b, samples, rng)
    there = _distances(points_a, points_b, faces_b, b)
    back = _distances(points_b, points_a, faces_a, a)
    return SurfaceDistance(float(max(there.max(), back.max())), float((there.mean() + back.mean()) / 2))


def sample_surface(surface: Surface, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` points [N, 3] spread evenly by area, and the face [N] of each."""
    areas = surface.face_areas()
    total = np.cumsum(areas)
    # Stratified: one point in each of `count` equal shares of the area.
    share = (np.arange(count) + rng.random(count)) / count * total[-1]
    faces = np.searchsorted(total, share).clip(0, len(areas) - 1)
    u, v = np.sqrt(rng.random(count)), rng.random(count)
    weights = np.stack([1 - u, u * (1 - v), u * v], axis=1)
    return np.einsum("nk,nkc->nc", weights, surface.vertices[surface.faces[faces]]), faces


def nearest_distances(points: np.ndarray, triangles: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Distance [N] of each point [N, 3] to the nearest of its candidates [N, K] among the triangles [F, 3, 3]."""
    distances = np.empty(len(points))
    with exclusive():
        _nearest_distances(points.astype(np.float64), triangles.astype(np.float64), candidates, distances)
    return distances


@kernel
def _dot(ax, ay, az, bx, by, bz):
    return ax * bx + ay * by + az * bz


@kernel
def _squared_distance(point, triangle):
    """Inside the prism over the triangle that to its plane, else to the nearest of its sides."""
    abx, aby, abz = triangle[1, 0] - triangle[0, 0], triangle[1, 1] - triangle[0, 1], triangle[1, 2] - triangle[0, 2]
    acx, acy, acz = triangle[2, 0] - triangle[0, 0], triangle[2, 1] - triangle[0, 1], triangle[2, 2] - triangle[0, 2]
    nx, ny, nz = aby * acz - abz * acy, abz * acx - abx * acz, abx * acy - aby * acx
    squared = _dot(nx, ny, nz, nx, ny, nz)
    inside, least = squared > 0, np.inf
    for side in range(3):
        start, end = triangle[side], triangle[(side + 1) % 3]
        sx, sy, sz = end[0] - start[0], end[1] - start[1], end[2] - start[2]
        px, py, pz = point[0] - start[0], point[1] - start[1], point[2] - start[2]
        inside &= _dot(sy * pz - sz * py, sz * px - sx * pz, sx * py - sy * px, nx, ny, nz) >= 0
        length = _dot(sx, sy, sz, sx, sy, sz)
        along = min(max(_dot(px, py, pz, sx, sy, sz) / length, 0.0), 1.0) if length > 0 else 0.0
        px, py, pz = px - along * sx, py - along * sy, pz - along * sz
        least = min(least, _dot(px, py, pz, px, py, pz))
    if inside:
        height = _dot(point[0] - triangle[0, 0], point[1] - triangle[0, 1], point[2] - triangle[0, 2], nx, ny, nz)
        return height * height / squared
    return least


@kernel(parallel=True)
def _nearest_distances(points, triangles, candidates, distances):
    for i in prange(len(points)):
        least = np.inf
        for face in candidates[i]:
            least = min(least, _squared_distance(points[i], triangles[face]))
        distances[i] = np.sqrt(least)


def _distances(points: np.ndarray, others: np.ndarray, faces: np.ndarray, surface: Surface) -> np.ndarray:
    corners = surface.corner_positions()
    # The middle of every face stands in for those that got no sample.
    others = np.concatenate([others, (corners[:, 0] + corners[:, 1] + corners[:, 2]) / 3])
    faces = np.concatenate([faces, np.arange(len(corners))])
    count = min(_CANDIDATES, len(others))
    # Points on a surface lie evenly: a balanced tree takes twice as long to build and answers no faster.
    tree = cKDTree(others, balanced_tree=False, compact_nodes=False)
    nearest = tree.query(points, k=count, workers=-1)[1].reshape(len(points), count)
    return nearest_distances(points, corners, faces[nearest])
