"""Surfaces that enclose a volume, as printing needs them."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from trellis.errors import InputError
from trellis.export.distance import sample_surface
from trellis.export.holes import fill_small_holes
from trellis.export.manifold import make_manifold
from trellis.export.surface import Surface
from trellis.export.topology import EdgeTable
from trellis.representations.flexicubes import flexicubes

_ROUNDS = 3
_SAMPLES_PER_CELL = 12  # sides of a cell are met this often on average; gaps are closed by the dilation


def is_watertight(surface: Surface) -> bool:
    """Whether every edge joins exactly two faces that wind alike, so that the surface bounds a volume."""
    return EdgeTable.welded(surface).closed


def make_watertight(surface: Surface, resolution: int = 160) -> Surface:
    """A closed surface: edges of many faces cut apart and every hole closed, or else the outside of a voxel solid.

    The first way keeps the given triangles and is tried up to three times. Where it fails (sheets that pass through
    each other, holes that share corners) the surface is rebuilt from voxels: colours and features finer than
    1 / `resolution` of the longest side are lost.
    """
    candidate = surface
    for _ in range(_ROUNDS):
        if is_watertight(candidate):
            return candidate
        candidate = _outward(make_manifold(fill_small_holes(make_manifold(candidate), np.inf)))
    return candidate if is_watertight(candidate) else voxel_solid(surface, resolution)


def voxel_solid(surface: Surface, resolution: int = 160) -> Surface:
    """The outer boundary of everything that cannot be reached from outside through gaps wider than two voxels.

    Raises:
        InputError: the surface has no extent.
    """
    low, high = surface.vertices.min(axis=0).astype(np.float64), surface.vertices.max(axis=0).astype(np.float64)
    cell = float((high - low).max()) / resolution
    if not cell > 0:
        raise InputError("A surface without extent encloses no volume.")
    margin = 6
    shape = np.ceil((high - low) / cell).astype(int) + 2 * margin + 1
    count = int(min(surface.face_areas().sum() / cell**2 * _SAMPLES_PER_CELL, 20_000_000))
    points, _ = sample_surface(surface, max(count, 1000), np.random.default_rng(0))
    wall = np.zeros(shape, dtype=bool)
    wall[tuple(np.rint((np.concatenate([points, surface.vertices]) - low) / cell).astype(int).T + margin)] = True
    thick = ndimage.binary_dilation(wall, iterations=1)
    labels, _ = ndimage.label(~thick)
    outside = ndimage.binary_dilation(labels == labels[0, 0, 0], iterations=1) & ~wall
    # Distances to either side, blurred by less than a cell, round the steps off.
    field = ndimage.distance_transform_edt(outside) - ndimage.distance_transform_edt(~outside)
    field = ndimage.gaussian_filter(field.astype(np.float32), 0.8)
    lattice = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape.tolist()), indexing="ij")
    with torch.no_grad():
        made = flexicubes(torch.from_numpy(field), torch.stack(lattice, dim=-1))
    vertices = (made.vertices.numpy() - margin) * cell + low
    return Surface(vertices.astype(np.float32), np.ascontiguousarray(made.faces.numpy(), dtype=np.int32))


def _outward(surface: Surface) -> Surface:
    """With a positive volume: all faces reversed if need be."""
    a, b, c = np.moveaxis(surface.corner_positions(), 1, 0)
    if np.einsum("fk,fk->", a, np.cross(b, c)) >= 0:
        return surface
    return Surface(surface.vertices, np.ascontiguousarray(surface.faces[:, ::-1]), surface.colors)
