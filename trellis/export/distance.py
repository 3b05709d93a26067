"""How far two surfaces lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from trellis.export.surface import Surface

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
    return np.einsum("nk,nkc->nc", weights, surface.corner_positions()[faces]), faces


def point_triangle_distances(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Distances [N] of points [N, 3] to triangles [N, 3, 3]: inside the prism that of the plane, else of a side."""
    a, b, c = np.moveaxis(triangles, 1, 0)
    normal = np.cross(b - a, c - a)
    squared = np.einsum("nk,nk->n", normal, normal)
    best = np.full(len(points), np.inf)
    inside = squared > 0
    for start, end in ((a, b), (b, c), (c, a)):
        side, offset = end - start, points - start
        along = np.einsum("nk,nk->n", offset, side) / np.maximum(np.einsum("nk,nk->n", side, side), 1e-300)
        best = np.minimum(best, np.linalg.norm(offset - along.clip(0, 1)[:, None] * side, axis=1))
        inside &= np.einsum("nk,nk->n", np.cross(side, offset), normal) >= 0
    height = np.abs(np.einsum("nk,nk->n", points - a, normal)) / np.sqrt(np.maximum(squared, 1e-300))
    return np.where(inside, height, best)


def _distances(points: np.ndarray, others: np.ndarray, faces: np.ndarray, surface: Surface) -> np.ndarray:
    corners = surface.corner_positions()
    # The middle of every face stands in for those that got no sample.
    others = np.concatenate([others, corners.mean(axis=1)])
    faces = np.concatenate([faces, np.arange(len(corners))])
    count = min(_CANDIDATES, len(others))
    nearest = cKDTree(others).query(points, k=count, workers=-1)[1].reshape(len(points), count)
    best = np.full(len(points), np.inf)
    for column in nearest.T:
        best = np.minimum(best, point_triangle_distances(points, corners[faces[column]]))
    return best
