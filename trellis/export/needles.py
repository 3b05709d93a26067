"""Triangles without area, removed without opening a hole."""

from __future__ import annotations

import numpy as np

from trellis.export.surface import Surface

_ROUNDS = 4


def flip_needles(surface: Surface) -> Surface:
    """Each face whose corners lie on one line gives its longest side's neighbour the corner in between.

    Needle (a, b, c) with c between a and b, and neighbour (b, a, d), become (a, d, c) and (d, b, c): the same surface,
    the same borders, and two faces with an area. Faces where that is impossible stay.
    """
    faces = surface.faces.copy()
    for _ in range(_ROUNDS):
        needles = np.flatnonzero(Surface(surface.vertices, faces).face_areas() <= 0)
        if len(needles) == 0:
            break
        owner = {tuple(edge): (face, k) for face, k, edge in _half_edges(faces, needles)}
        changed: set[int] = set()
        for face in needles.tolist():
            corners = surface.vertices[faces[face]].astype(np.float64)
            lengths = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)
            k = int(lengths.argmax())
            a, b, c = (int(v) for v in np.roll(faces[face], -k))
            other, side = owner.get((b, a), (-1, 0))
            if other < 0 or other == face or other in changed or face in changed:
                continue
            d = int(np.roll(faces[other], -side)[2])
            if len({a, b, c, d}) < 4:
                continue
            faces[face], faces[other] = (a, d, c), (d, b, c)
            changed |= {face, other}
        if not changed:
            break
    return Surface(surface.vertices, faces, surface.colors)


def _half_edges(faces: np.ndarray, needles: np.ndarray):
    """(face, corner, (from, to)) of the half edges between vertices that needles touch."""
    touched = np.zeros(int(faces.max()) + 1, dtype=bool)
    touched[faces[needles]] = True
    for k in range(3):
        start, end = faces[:, k], faces[:, (k + 1) % 3]
        for face in np.flatnonzero(touched[start] & touched[end]).tolist():
            yield face, k, (int(start[face]), int(end[face]))
