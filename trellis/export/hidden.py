"""What nobody sees: separate the visible outer surface from hidden parts along the shortest possible cut."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from trellis.export.surface import Surface
from trellis.export.topology import EdgeTable, pieces, position_ids

_CAPACITY_STEPS = 10_000  # whole numbers for the flow: the longest edge is this many
_UNBOUNDED = 2**30
_MAX_UNDECIDED = 150_000  # faces in the cut; beyond, its time is no longer short and the plain border is used


def cut_between(surface: Surface, edges: EdgeTable, outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """[F] bool, true on the inner side of the shortest set of edges that separates `outer` from `inner` faces [F].

    Faces that are neither go to the side that makes the border shortest (maximum flow, Dinic 1970, with the length of
    the shared edge as capacity). A view through a narrow neck sees a patch of the wall behind it; the border of that
    patch is long, and that of the neck short, so the cut moves to the neck.
    """
    undecided = np.flatnonzero(~(outer | inner))
    if len(undecided) == 0 or len(undecided) > _MAX_UNDECIDED or not inner.any() or not outer.any():
        return inner.copy()
    source, sink = len(undecided), len(undecided) + 1
    node = np.where(outer, source, sink)
    node[undecided] = np.arange(len(undecided))
    ends = node[edges.pairs]
    crossing = (ends < source).any(axis=1) & (ends[:, 0] != ends[:, 1])
    lengths = shared_edge_lengths(surface, *edges.pairs[crossing].T)
    capacity = np.maximum(np.rint(lengths / max(lengths.max(initial=0), 1e-30) * _CAPACITY_STEPS), 1).astype(np.int64)
    a, b = ends[crossing].T
    graph = sparse.coo_matrix(
        (np.r_[capacity, capacity], (np.r_[a, b], np.r_[b, a])), shape=(sink + 1, sink + 1)
    ).tocsr()  # sums parallel edges
    graph.data = np.minimum(graph.data, _UNBOUNDED)
    graph = graph.astype(np.int32)
    flow = csgraph.maximum_flow(graph, source, sink).flow
    residual = (graph - flow).tocsr()
    residual.data = (residual.data > 0).astype(np.int8)
    residual.eliminate_zeros()
    reached = np.zeros(sink + 1, dtype=bool)
    reached[csgraph.breadth_first_order(residual, source, return_predecessors=False)] = True
    result = inner.copy()
    result[undecided] = ~reached[: len(undecided)]
    return result


def behind_necks(surface: Surface, edges: EdgeTable, inner: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Of the `inner` patches [F] bool, those whose rims could be closed with less than half of the patch's area.

    A wall reached through a narrow neck is; the bottom of a crevice, hardly larger than its opening, is not.
    """
    if not inner.any():
        return inner.copy()
    number, labels = pieces(edges, among=inner)
    patch_area = np.bincount(labels, areas, number)
    # Rims: edges between an inner face and another one.
    a, b = edges.pairs[inner[edges.pairs[:, 0]] != inner[edges.pairs[:, 1]]].T
    within = np.where(inner[a], a, b)
    rim = np.bincount(labels[within], shared_edge_lengths(surface, a, b), number)
    return inner & (_circle_area(rim) < 0.5 * patch_area)[labels]


def shared_edge_lengths(surface: Surface, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[P] lengths of the edges between faces a [P] and b [P]."""
    ids = position_ids(surface.vertices)
    shared = (ids[surface.faces[a]][:, :, None] == ids[surface.faces[b]][:, None, :]).any(axis=2)
    shared[shared.all(axis=1), 2] = False  # a face folded onto another one; any of its edges will do
    corners = surface.vertices[surface.faces[a]][shared].reshape(-1, 2, 3).astype(np.float64)
    return np.linalg.norm(corners[:, 0] - corners[:, 1], axis=1)


def _circle_area(perimeter: np.ndarray) -> np.ndarray:
    """The largest area that a closed curve of this length can enclose in the plane."""
    return perimeter**2 / (4 * np.pi)
