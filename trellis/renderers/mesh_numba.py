"""A z-buffer on the CPU with numba, the reference; tensors on another device are moved there and the images back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trellis.renderers.mesh_antialias import antialias_numba as antialias
from trellis.renderers.mesh_interpolation import interpolate_numba as interpolate
from trellis.renderers.mesh_topology import face_table
from trellis.renderers.mesh_visibility import screen_array
from trellis.renderers.numba_runtime import exclusive, kernel, prange

__all__ = ["antialias", "find_visible", "interpolate"]

_BAND_ROWS = 32  # rows per parallel task; a constant, so that the work is cut alike on every machine
_MAX_BANDS = 16  # every band looks at the row range of every face
_MIN_AREA = 1e-8  # twice the area in square pixels below which a face has no inside
_EDGE_SLACK = 1e-9  # barycentric; a centre exactly on a shared edge must not fall between its two faces


def find_visible(
    screen: Tensor, faces: Tensor, height: int, width: int, near: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The images of a `mesh_visibility.Raster`: face ids, barycentrics and depth, on the device of `screen`."""
    vertices, table = screen_array(screen), face_table(faces)
    face_ids = np.empty((height, width), np.int32)
    barycentrics = np.empty((height, width, 3), np.float32)
    depth = np.empty((height, width), np.float32)
    num_bands = max(1, min(_MAX_BANDS, height // _BAND_ROWS))
    with exclusive():
        rows = _face_rows(vertices, table.triangles, near, height)
        _fill_bands(vertices, table.triangles, rows, num_bands, face_ids, barycentrics, depth)
    return tuple(torch.from_numpy(image).to(screen.device) for image in (face_ids, barycentrics, depth))


@kernel
def _face_rows(screen: np.ndarray, faces: np.ndarray, near: float, height: int) -> np.ndarray:
    """First and last pixel row whose centres a face may cover, [F, 2]; first > last for a face that is never seen.

    Serial: 3 ns a face, less than it costs to gather the threads on a busy machine.
    """
    rows = np.empty((len(faces), 2), np.int32)
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        if min(screen[a, 2], screen[b, 2], screen[c, 2]) < near:
            rows[face, 0] = 1
            rows[face, 1] = 0
            continue
        low = min(screen[a, 1], screen[b, 1], screen[c, 1])
        high = max(screen[a, 1], screen[b, 1], screen[c, 1])
        # Clamped as floats: a far coordinate does not fit an integer.
        rows[face, 0] = int(np.ceil(min(max(low - 0.5, 0.0), float(height))))
        rows[face, 1] = int(np.floor(max(min(high - 0.5, height - 1.0), -1.0)))
    return rows


@kernel
def _affine(screen: np.ndarray, a: int, b: int, c: int) -> tuple[float, float, float, float, float]:
    """Screen barycentrics of vertices b and c as linear forms of the offset from vertex a, and twice the area.

    Offsets from a vertex, in float64, keep small faces far from the image origin exact.
    """
    bx, by = screen[b, 0] - screen[a, 0], screen[b, 1] - screen[a, 1]
    cx, cy = screen[c, 0] - screen[a, 0], screen[c, 1] - screen[a, 1]
    area = bx * cy - by * cx
    if abs(area) < _MIN_AREA:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    return cy / area, -cx / area, -by / area, bx / area, area


@kernel
def _fill_face(
    screen: np.ndarray, faces: np.ndarray, face: int, first: int, last: int, face_ids: np.ndarray, nearest: np.ndarray
) -> None:
    """Write one face into rows first..last of the z-buffer, which holds 1 / depth (linear on screen)."""
    a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
    ub_x, ub_y, uc_x, uc_y, area = _affine(screen, a, b, c)
    if area == 0.0:
        return
    width = face_ids.shape[1]
    low = min(screen[a, 0], screen[b, 0], screen[c, 0])
    high = max(screen[a, 0], screen[b, 0], screen[c, 0])
    first_column = int(np.ceil(min(max(low - 0.5, 0.0), float(width))))
    last_column = int(np.floor(max(min(high - 0.5, width - 1.0), -1.0)))
    origin_x, origin_y = screen[a, 0], screen[a, 1]
    za, zb, zc = 1.0 / screen[a, 2], 1.0 / screen[b, 2], 1.0 / screen[c, 2]
    for row in range(first, last + 1):
        y = row + 0.5 - origin_y
        for column in range(first_column, last_column + 1):
            x = column + 0.5 - origin_x
            ub = x * ub_x + y * ub_y
            uc = x * uc_x + y * uc_y
            ua = 1.0 - ub - uc
            if ua >= -_EDGE_SLACK and ub >= -_EDGE_SLACK and uc >= -_EDGE_SLACK:
                inverse = np.float32(ua * za + ub * zb + uc * zc)
                if inverse > nearest[row, column]:
                    nearest[row, column] = inverse
                    face_ids[row, column] = face


@kernel(parallel=True)
def _fill_bands(
    screen: np.ndarray,
    faces: np.ndarray,
    rows: np.ndarray,
    num_bands: int,
    face_ids: np.ndarray,
    barycentrics: np.ndarray,
    depth: np.ndarray,
) -> None:
    """Horizontal bands in parallel. A band owns its pixels and takes the faces in order, so threads never race."""
    height, width = face_ids.shape
    for band in prange(num_bands):
        top, bottom = band * height // num_bands, (band + 1) * height // num_bands
        face_ids[top:bottom] = -1
        depth[top:bottom] = 0.0  # holds 1 / depth until the band is complete
        for face in range(len(faces)):
            first, last = max(rows[face, 0], top), min(rows[face, 1], bottom - 1)
            if first <= last:
                _fill_face(screen, faces, face, first, last, face_ids, depth)
        for row in range(top, bottom):
            for column in range(width):
                face = face_ids[row, column]
                if face < 0:
                    barycentrics[row, column, :] = 0.0
                    continue
                a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
                ub_x, ub_y, uc_x, uc_y, _ = _affine(screen, a, b, c)
                x, y = column + 0.5 - screen[a, 0], row + 0.5 - screen[a, 1]
                ub = x * ub_x + y * ub_y
                uc = x * uc_x + y * uc_y
                qa = (1.0 - ub - uc) / screen[a, 2]
                qb = ub / screen[b, 2]
                qc = uc / screen[c, 2]
                distance = 1.0 / (qa + qb + qc)
                barycentrics[row, column, 0] = qa * distance
                barycentrics[row, column, 1] = qb * distance
                barycentrics[row, column, 2] = qc * distance
                depth[row, column] = distance
