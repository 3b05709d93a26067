"""Pixels that lie on an edge of the surface, where pictures of two nearly equal surfaces may show different sides."""

from __future__ import annotations

import numpy as np

from trellis.export.views import Hit
from trellis.renderers.numba_runtime import exclusive, kernel

_SAME_SIDE = 0.5  # cosine; faces turned by more than 60 degrees belong to different sides


def crease_pixels(hit: Hit, normals: np.ndarray) -> np.ndarray:
    """[H, W] bool: a neighbouring pixel is empty or shows a face turned by more than 60 degrees.

    Args:
        hit: what a camera sees.
        normals: [F, 3] float32, unit, of the faces seen.
    """
    found = np.zeros(hit.face_ids.shape, dtype=np.bool_)
    with exclusive():
        _find(hit.face_ids, normals, found)
    return found


@kernel
def _find(face_ids, normals, found):
    height, width = face_ids.shape
    for row in range(height):
        for column in range(width):
            face = face_ids[row, column]
            if face < 0:
                continue
            n = normals[face]
            for r in range(max(row - 1, 0), min(row + 2, height)):
                for c in range(max(column - 1, 0), min(column + 2, width)):
                    other = face_ids[r, c]
                    if other == face:
                        continue
                    m = normals[max(other, 0)]
                    if other < 0 or n[0] * m[0] + n[1] * m[1] + n[2] * m[2] < _SAME_SIDE:
                        found[row, column] = True
