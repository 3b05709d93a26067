"""The texels of an atlas: where each one lies on the surface, and the image that they make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trellis import backends
from trellis.export.gutter import dilate
from trellis.export.unwrap import Atlas
from trellis.renderers import mesh_raster

# Barycentrics of the points that represent a sliver: the middle, towards the corners, along the sides.
_SPREAD = np.array([[4, 4, 4], [10, 1, 1], [1, 10, 1], [1, 1, 10], [6, 5, 1], [1, 6, 5], [5, 1, 6]]) / 12


@dataclass(frozen=True, eq=False)
class Texels:
    """The T texels of a square texture that a triangle covers (nearly all by their centre).

    Attributes:
        size: side of the texture.
        rows, columns: [T] int64 place in the image, row 0 at the top (v = 1).
        positions: [T, 3] float32 on the surface, object frame.
        normals: [T, 3] float32, unit normal of the texel's triangle.
    """

    size: int
    rows: np.ndarray
    columns: np.ndarray
    positions: np.ndarray
    normals: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def texels_of(atlas: Atlas, size: int, device: torch.device | str = "cpu") -> Texels:
    """Rasterise the atlas in texture space; a sliver that no texel centre hits gets the empty texels it passes.

    `device` is where to rasterise.
    """
    device = backends.place("mesh_rasterisation", device)
    screen = np.stack([atlas.uvs[:, 0] * size, (1 - atlas.uvs[:, 1]) * size, np.ones(len(atlas.uvs))], axis=1)
    arrays = screen.astype(np.float32), atlas.faces, atlas.vertices
    points, faces, vertices = (torch.from_numpy(array).to(device) for array in arrays)
    raster = mesh_raster.rasterize(points, faces, size, size)
    grid = mesh_raster.interpolate(vertices, points, faces, raster).cpu().numpy()
    ids = raster.face_ids.cpu().numpy().copy()
    _add_slivers(atlas, screen[:, :2], ids, grid)
    covered = np.flatnonzero(ids >= 0)
    rows, columns = np.divmod(covered, size)
    normals = atlas.surface.face_normals()
    return Texels(size, rows, columns, grid.reshape(-1, 3)[covered], normals[ids.reshape(-1)[covered]])


def _add_slivers(atlas: Atlas, places: np.ndarray, ids: np.ndarray, positions: np.ndarray) -> None:
    """Enter faces into empty texels of `ids` [S, S] and `positions` [S, S, 3] at a few points of each face.

    Charts thinner than a texel exist, and without a texel of their own they would show their neighbours' colour.
    """
    size = len(ids)
    corners, texel_corners = atlas.vertices[atlas.faces], places[atlas.faces]
    for weights in _SPREAD:
        column, row = np.floor(np.einsum("k,fkc->fc", weights, texel_corners)).astype(np.int64).clip(0, size - 1).T
        empty = np.flatnonzero(ids[row, column] < 0)
        ids[row[empty], column[empty]] = empty
        positions[row[empty], column[empty]] = np.einsum("k,fkc->fc", weights, corners[empty]).astype(np.float32)


def paint(texels: Texels, colors: np.ndarray) -> np.ndarray:
    """The image [S, S, C] float32 with each texel's colour [T, C] in place and every other pixel that of the nearest.

    Continuing the charts into the gutter keeps bilinear and mipmapped lookups from mixing in foreign colours.
    """
    image = np.zeros((texels.size, texels.size, colors.shape[1]), dtype=np.float32)
    known = np.zeros((texels.size, texels.size), dtype=bool)
    image[texels.rows, texels.columns] = colors
    known[texels.rows, texels.columns] = True
    return dilate(image, known)
