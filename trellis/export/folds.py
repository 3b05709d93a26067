"""What collapsing edges leaves behind: fins, which are a triangle and its back, and triangles that lie folded over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from trellis.export.surface import Surface
from trellis.export.topology import row_ids
from trellis.export.views import surround
from trellis.export.visibility import count_sightings

_VIEWS, _RESOLUTION = 48, 512
_ROUNDS = 4
_SHARP = -0.3  # cosine between the normals of the two faces on an edge, below which it counts as a fold
_CROWD = 500  # faces around a corner and its neighbours, beyond which it stays: many corners share such a hub
_SHARES = (0.3, 1.0)  # of the way to the middle of its neighbours, which a corner may go


def without_fins(surface: Surface) -> Surface:
    """Faces on the same three corners cancel out if they look in opposite directions; all else stays closed as it was.

    A surface of nothing else stays as it is.
    """
    ids = row_ids(np.sort(surface.faces, axis=1))
    first = surface.faces.argmin(axis=1)[:, None]
    turned = np.take_along_axis(surface.faces, (first + np.arange(3)) % 3, axis=1)
    forward = turned[:, 1] < turned[:, 2]
    net = np.bincount(ids, np.where(forward, 1, -1))
    keep = np.zeros(len(ids), dtype=bool)
    for side, left in ((np.flatnonzero(forward), net), (np.flatnonzero(~forward), -net)):
        side = side[np.argsort(ids[side], kind="stable")]
        rank = np.arange(len(side)) - np.searchsorted(ids[side], ids[side])  # among those on the same corners
        keep[side] = rank < left[ids[side]]
    return surface.select_faces(keep) if keep.any() and not keep.all() else surface


def unfold(surface: Surface, device: torch.device | str = "cpu") -> Surface:
    """The same surface without the folds that cameras around it see from behind, as far as moving corners does it.

    Corners of faces whose back is seen more often than the front go towards the middle of their neighbours, if that
    lessens the folds there; not those beside a hub of hundreds of faces. An open sheet, whose back may well be seen,
    stays, for it has no folds.

    Args:
        surface: finite, vertices at one place joined.
        device: where to look at it.
    """
    cameras = surround(surface, _VIEWS, _RESOLUTION)
    for _ in range(_ROUNDS):
        sightings = count_sightings(surface, cameras, device)
        corners = np.unique(surface.faces[sightings.back > sightings.front])
        smoothed = _smoothed(surface, corners)
        if np.array_equal(smoothed, surface.vertices):
            break
        surface = replace(surface, vertices=smoothed)
    return surface


def _smoothed(surface: Surface, corners: np.ndarray) -> np.ndarray:
    """The vertices [V, 3], with those of `corners` [K] moved that have fewer folds around them elsewhere."""
    order = np.argsort(surface.faces, axis=None, kind="stable")
    owners, starts = order // 3, np.searchsorted(surface.faces.ravel()[order], np.arange(len(surface.vertices) + 1))
    places = surface.vertices.copy()
    for vertex in corners.tolist():
        around = owners[starts[vertex] : starts[vertex + 1]]
        neighbours = np.setdiff1d(surface.faces[around], [vertex])
        if len(neighbours) != len(around):  # on a border, which keeps its shape
            continue
        if (starts[neighbours + 1] - starts[neighbours]).sum() > _CROWD:
            continue
        involved = np.unique(np.concatenate([owners[starts[v] : starts[v + 1]] for v in neighbours]))
        measure = _folds_among(surface.faces[involved])
        here, middle = places[vertex].copy(), places[neighbours].mean(axis=0)
        least, best = measure(places), here
        for share in _SHARES:
            places[vertex] = (1 - share) * here + share * middle
            folds = measure(places)
            if folds < least:
                least, best = folds, places[vertex].copy()
        places[vertex] = best
    return places


def _folds_among(faces: np.ndarray) -> Callable[[np.ndarray], float]:
    """A function of the vertices [V, 3]: how long and how sharp the folds between some faces [F, 3] are."""
    owner = {(a, b): face for face, (a, b, c) in enumerate(faces.tolist()) for a, b in ((a, b), (b, c), (c, a))}
    edges = np.array([edge for edge in owner if edge[0] < edge[1] and edge[::-1] in owner]).reshape(-1, 2)
    sides = np.array([(owner[a, b], owner[b, a]) for a, b in edges.tolist()], dtype=np.int64).reshape(-1, 2)

    def measure(vertices: np.ndarray) -> float:
        normals = Surface(vertices, faces).face_normals()
        sharpness = _SHARP - np.einsum("ek,ek->e", normals[sides[:, 0]], normals[sides[:, 1]])
        lengths = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)
        return float((sharpness.clip(0) * lengths).sum())

    return measure
