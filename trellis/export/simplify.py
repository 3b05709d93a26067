"""Quadric edge-collapse simplification (Garland and Heckbert 1997; the fast-simplification package)."""

from __future__ import annotations

import threading

import fast_simplification
import numpy as np
import torch

from trellis.errors import InputError
from trellis.export.folds import unfold, without_fins
from trellis.export.manifold import make_manifold
from trellis.export.needles import flip_needles
from trellis.export.surface import Surface
from trellis.export.topology import first_rows, position_ids

MIN_FACES = 500  # a fraction of a tiny mesh would be no object any more
_AGGRESSIVENESS = (3.0, 7.0, 9.0, 11.0)  # the first halves the error of the package's default, 7, in little more time
_lock = threading.Lock()  # the package keeps its mesh in global variables


def simplify(
    surface: Surface,
    ratio: float = 0.95,
    max_faces: int | None = None,
    target_faces: int | None = None,
    device: torch.device | str = "cpu",
) -> Surface:
    """Geometry with fewer triangles; vertices at the same place are joined and colours are dropped.

    No edge of the result has more than two faces.

    Args:
        surface: finite and without degenerate faces.
        ratio: fraction of the faces to remove, in [0, 1). Meshes are not reduced below `MIN_FACES` by it.
        max_faces: upper bound on the number of faces afterwards, at least 4; None for no bound.
        target_faces: number of faces to aim at, at least 4, in place of the ratio; None for the ratio.
        device: where to look at the result, to find its folds; all else is done on the CPU.

    Raises:
        InputError: a number out of its range.
    """
    if not 0 <= ratio < 1:
        raise InputError(f"The simplification must be a fraction of the faces from 0 to below 1, but is {ratio}.")
    for bound in (max_faces, target_faces):
        if bound is not None and bound < 4:
            raise InputError(f"A solid has at least 4 faces, but the bound is {bound}.")
    welded = weld(surface)
    target = target_faces or max(round(len(welded.faces) * (1 - ratio)), MIN_FACES)
    if max_faces is not None:
        target = min(target, max_faces)
    if target >= len(welded.faces):
        return make_manifold(welded)

    low = _collapsed(welded, target)
    if len(low.faces) > 1.02 * target:  # taking crowded edges apart adds faces
        low = _collapsed(welded, max(round(target * target / len(low.faces)), 4))
    return unfold(low, device)


def _collapsed(surface: Surface, target: int) -> Surface:
    """About `target` faces, or some more where edges of more than two faces had to be taken apart."""
    # The collapse threshold is absolute, so bring the mesh to unit size first.
    center, radius = surface.bounding_sphere()
    points, faces = (surface.vertices - center) / radius, surface.faces
    for aggressiveness in _AGGRESSIVENESS:
        with _lock:
            points, faces = fast_simplification.simplify(points, faces, target_count=target, agg=aggressiveness)
        if len(faces) <= 1.02 * target:
            break
    if len(faces) == 0:  # collapsed to nothing: flat or thread-like beyond what quadrics can judge
        return surface
    low = Surface((points * radius + center).astype(np.float32), np.ascontiguousarray(faces, dtype=np.int32))
    return make_manifold(flip_needles(without_fins(weld(low))))


def weld(surface: Surface) -> Surface:
    """Vertices at exactly the same place joined, without faces that this leaves degenerate; no colours."""
    ids = position_ids(surface.vertices)
    first = first_rows(ids).astype(np.int32)
    faces = first[ids[surface.faces]]
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return Surface(surface.vertices, faces).select_faces(distinct)
