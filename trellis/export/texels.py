"""The texels of an atlas: where each one lies on the surface, and the image that they make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trellis import backends
from trellis.export.gutter import dilate
from trellis.export.surface import unit
from trellis.export.unwrap import Atlas
from trellis.renderers import mesh_raster

# Barycentrics of the points that represent a sliver: the middle, towards the corners, along the sides.
_SPREAD = np.array([[4, 4, 4], [10, 1, 1], [1, 10, 1], [1, 1, 10], [6, 5, 1], [1, 6, 5], [5, 1, 6]]) / 12


@dataclass(frozen=True, eq=False)
class SurfacePoints:
    """T points that pictures may show.

    Attributes:
        positions: [T, 3] float32 on the surface, object frame.
        normals: [T, 3] float32, unit.
    """

    positions: np.ndarray
    normals: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, eq=False)
class Texels(SurfacePoints):
    """The T texels of a square texture that a triangle covers (nearly all by their centre).

    `normals` are those of the texels' triangles, or what `texels_of` was given instead.

    Attributes:
        size: side of the texture.
        rows, columns: [T] int64 place in the image, row 0 at the top (v = 1).
    """

    size: int
    rows: np.ndarray
    columns: np.ndarray


def texels_of(
    atlas: Atlas, size: int, device: torch.device | str = "cpu", normals: np.ndarray | None = None
) -> Texels:
    """Rasterise the atlas in texture space; a sliver that no texel centre hits gets the empty texels it passes.

    Args:
        device: where to rasterise.
        normals: [V, 3] float32 of the atlas' vertices, to be interpolated; None for those of the triangles.
    """
    device = backends.place("mesh_rasterisation", device)
    screen = np.stack([atlas.uvs[:, 0] * size, (1 - atlas.uvs[:, 1]) * size, np.ones(len(atlas.uvs))], axis=1)
    values = atlas.vertices if normals is None else np.concatenate([atlas.vertices, normals], axis=1)
    arrays = screen.astype(np.float32), atlas.faces, values
    points, faces, attributes = (torch.from_numpy(array).to(device) for array in arrays)
    raster = mesh_raster.rasterize(points, faces, size, size)
    grid = mesh_raster.interpolate(attributes, points, faces, raster).cpu().numpy()
    ids = raster.face_ids.cpu().numpy().copy()
    _add_slivers(values[atlas.faces], screen[atlas.faces, :2], ids, grid)
    covered = np.flatnonzero(ids >= 0)
    rows, columns = np.divmod(covered, size)
    found = grid.reshape(size * size, -1)[covered]
    own = atlas.surface.face_normals()[ids.reshape(-1)[covered]] if normals is None else unit(found[:, 3:])
    return Texels(np.ascontiguousarray(found[:, :3]), own, size, rows, columns)


def _add_slivers(corners: np.ndarray, texel_corners: np.ndarray, ids: np.ndarray, values: np.ndarray) -> None:
    """Enter faces into empty texels of `ids` [S, S] and `values` [S, S, C] at a few points of each face.

    Charts thinner than a texel exist, and without a texel of their own they would show their neighbours' colour.

    Args:
        corners: [F, 3, C] values at the faces' corners.
        texel_corners: [F, 3, 2] where those are in the texture, in texels.
    """
    size = len(ids)
    for weights in _SPREAD:
        column, row = np.floor(np.einsum("k,fkc->fc", weights, texel_corners)).astype(np.int64).clip(0, size - 1).T
        empty = np.flatnonzero(ids[row, column] < 0)
        ids[row[empty], column[empty]] = empty
        values[row[empty], column[empty]] = np.einsum("k,fkc->fc", weights, corners[empty]).astype(np.float32)


def paint(texels: Texels, colors: np.ndarray) -> np.ndarray:
    """The image [S, S, C] float32 with each texel's colour [T, C] in place and every other pixel that of the nearest.

    Continuing the charts into the gutter keeps bilinear and mipmapped lookups from mixing in foreign colours.
    """
    image = np.zeros((texels.size, texels.size, colors.shape[1]), dtype=np.float32)
    known = np.zeros((texels.size, texels.size), dtype=bool)
    image[texels.rows, texels.columns] = colors
    known[texels.rows, texels.columns] = True
    return dilate(image, known)
