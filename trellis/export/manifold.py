"""Edges of more than two faces, taken apart so that each joins two."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from trellis.export.surface import Surface
from trellis.export.topology import EdgeTable, flips_to_agree, half_edges_by_edge, pieces, position_ids

_GAP = 4e-6  # of the object's radius, between sheets taken apart: some dozens of float32 steps, and far below a pixel
_ROUNDS = 6  # of halving edges; each halves at most one edge of a face


def make_manifold(surface: Surface) -> Surface:
    """The same picture with at most two faces on every edge, wound alike where that is possible.

    Simplification lets sheets meet in an edge. There the faces are paired: opposite directions, the smoothest passage
    first. Around a corner, the faces that hang together through such pairs get a vertex of their own, moved outwards
    by a hair (the cutting of Gueziec et al. 2001). A pair that hangs together around both ends of its edge all the same
    gets the edge halved at a point of its own. Single faces and backs of faces that this leaves on their own go.
    """
    edges = EdgeTable.welded(surface)
    if (edges.uses > 2).any():
        surface = _without_scraps(*_cut_at_corners(surface))
        for _ in range(_ROUNDS):
            surface, changed = _halve_edges(surface)
            if not changed:
                break
        edges = EdgeTable.welded(surface)
    flip = flips_to_agree(edges)
    return surface.with_faces(np.where(flip[:, None], surface.faces[:, ::-1], surface.faces)) if flip.any() else surface


def _without_scraps(surface: Surface, cut: np.ndarray) -> Surface:
    """Without pieces of one or two faces that are all among those `cut` [F]."""
    labels = pieces(EdgeTable.welded(surface))[1]
    scrap = (np.bincount(labels) <= 2) & (np.bincount(labels, ~cut) == 0)
    return surface if scrap.all() or not scrap.any() else surface.select_faces(~scrap[labels])


def _crowded_edges(surface: Surface) -> tuple[np.ndarray, list[list[tuple[int, ...]]]]:
    """Pairs of half edges [P, 2] on edges of two faces, and for every other edge of more its pairs and single ones."""
    ids = position_ids(surface.vertices)[surface.faces]
    order, starts, forward = half_edges_by_edge(ids)
    uses = np.diff(starts)
    plain = starts[:-1][uses == 2]
    vectors = surface.face_vectors()
    normals = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    crowded = []
    for edge in np.flatnonzero(uses > 2):
        members = order[starts[edge] : starts[edge + 1]]
        ahead, back = members[forward[members]], members[~forward[members]]
        smooth = normals[ahead // 3] @ normals[back // 3].T
        pairs: list[tuple[int, ...]] = []
        for _ in range(min(smooth.shape)):
            i, j = np.unravel_index(smooth.argmax(), smooth.shape)
            pairs.append((int(ahead[i]), int(back[j])))
            smooth[i], smooth[:, j] = -np.inf, -np.inf
        paired = {h for pair in pairs for h in pair}
        crowded.append(pairs + [(int(h),) for h in members if h not in paired])
    return np.stack([order[plain], order[plain + 1]], axis=1), crowded


def _cut_at_corners(surface: Surface) -> tuple[Surface, np.ndarray]:
    """Every fan of faces around a corner of a crowded edge on its own vertex; and which faces [F] had such edges."""
    plain, crowded = _crowded_edges(surface)
    ids = position_ids(surface.vertices)[surface.faces].ravel()
    links = np.concatenate([plain, np.array([p for edge in crowded for p in edge if len(p) == 2]).reshape(-1, 2)])
    # A half edge 3 f + k leads from corner 3 f + k to the next corner of the same face.
    start, end = links, links // 3 * 3 + (links + 1) % 3
    same = ids[start[:, 0]] == ids[start[:, 1]]
    rows = np.r_[start[:, 0], end[:, 0]]
    columns = np.r_[np.where(same, start[:, 1], end[:, 1]), np.where(same, end[:, 1], start[:, 1])]
    graph = sparse.coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(len(ids), len(ids)))
    fans = csgraph.connected_components(graph, directed=False)[1]

    members = np.array([h for edge in crowded for pair in edge for h in pair])
    cut = np.zeros(len(surface.faces), dtype=bool)
    cut[members // 3] = True
    touched = np.zeros(int(ids.max()) + 1, dtype=bool)
    touched[ids[members]] = touched[ids[members // 3 * 3 + (members + 1) % 3]] = True
    corners = np.flatnonzero(touched[ids])
    found, first, fan = np.unique(fans[corners], return_index=True, return_inverse=True)
    vertex = ids[corners[first]]
    # The first fan of a vertex stays in place.
    by_vertex = np.argsort(vertex, kind="stable")
    begins = np.r_[True, np.diff(vertex[by_vertex]) > 0]
    rank = np.empty(len(found), dtype=np.int64)
    rank[by_vertex] = np.arange(len(found)) - np.maximum.accumulate(np.where(begins, np.arange(len(found)), 0))
    outward = np.zeros((len(found), 3))
    np.add.at(outward, fan, surface.face_vectors()[corners // 3])
    moved = np.flatnonzero(rank > 0)
    new_index = np.full(len(found), -1)
    new_index[moved] = len(surface.vertices) + np.arange(len(moved))
    old = surface.faces.ravel()[corners[first[moved]]]
    places = surface.vertices[old] + _step(surface, outward[moved], rank[moved])
    faces = surface.faces.ravel().copy()
    faces[corners] = np.where(new_index[fan] >= 0, new_index[fan], faces[corners])
    return _with_vertices(surface, places, [old], faces.reshape(-1, 3)), cut


def _halve_edges(surface: Surface) -> tuple[Surface, bool]:
    """All but one pair of each crowded edge lead over a new point near its middle."""
    vectors = surface.face_vectors()
    taken: set[int] = set()
    faces, added = surface.faces.copy(), []
    ends, outward, ranks = [], [], []
    for edge in _crowded_edges(surface)[1]:
        for rank, pair in enumerate(edge[1:], start=1):
            owners = {h // 3 for h in pair}
            if owners & taken:
                continue
            taken |= owners
            middle = len(surface.vertices) + len(ends)
            for h in pair:
                face, k = divmod(h, 3)
                a, b, c = (int(surface.faces[face, (k + i) % 3]) for i in range(3))
                faces[face] = a, middle, c
                added.append((middle, b, c))
            ends.append((a, b))
            outward.append(vectors[list(owners)].sum(axis=0))
            ranks.append(rank)
    if not ends:
        return surface, False
    ends = np.array(ends)
    places = surface.vertices[ends].mean(axis=1) + _step(surface, np.array(outward), np.array(ranks))
    return _with_vertices(surface, places, list(ends.T), np.concatenate([faces, np.array(added, dtype=np.int32)])), True


def _step(surface: Surface, outward: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """[N, 3] moves along `outward` [N, 3] (any length) by the gap; those of higher rank go farther."""
    lengths = np.linalg.norm(outward, axis=1, keepdims=True)
    outward = np.where(lengths > 0, outward / np.maximum(lengths, 1e-30), [0.0, 0.0, 1.0])
    return outward * (_GAP * surface.bounding_sphere()[1] * rank[:, None])


def _with_vertices(surface: Surface, places: np.ndarray, sources: list[np.ndarray], faces: np.ndarray) -> Surface:
    """Vertices [N, 3] appended, coloured like the mean of their sources [N], under other faces."""
    colors = surface.colors
    if colors is not None:
        colors = np.concatenate([colors, np.mean([colors[source] for source in sources], axis=0)]).astype(np.float32)
    vertices = np.concatenate([surface.vertices, places.astype(np.float32)])
    return Surface(vertices, np.ascontiguousarray(faces, dtype=np.int32), colors)
