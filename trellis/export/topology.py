"""Adjacency of triangle soups by array operations: edges, neighbours, pieces, boundary loops, orientation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph


def position_ids(vertices: np.ndarray) -> np.ndarray:
    """[V] int32: the same number for vertices at exactly the same place (colour seams split them)."""
    return row_ids(vertices + np.float32(0))  # adding zero turns -0.0 into 0.0


def row_ids(rows: np.ndarray) -> np.ndarray:
    """[N] int32: the same number for equal rows of [N, K]; numbers follow the rows' sorted order."""
    order = np.lexsort(rows.T)
    in_order = rows[order]
    is_new = np.r_[False, (in_order[1:] != in_order[:-1]).any(axis=1)]
    ids = np.empty(len(rows), dtype=np.int32)
    ids[order] = np.cumsum(is_new)
    return ids


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """Every half edge of a mesh, and the pairs of faces that meet along an edge.

    Attributes:
        pairs: [P, 2] int64 face indices sharing an edge; k faces on one edge give k - 1 pairs.
        flipped: [P] bool, whether the two faces run along their edge in the same direction (opposite winding).
        boundary: [B, 2] int32 directed edges that belong to one face only, in the direction of that face.
        boundary_faces: [B] int64, that face.
        num_faces: number of faces.
    """

    pairs: np.ndarray
    flipped: np.ndarray
    boundary: np.ndarray
    boundary_faces: np.ndarray
    num_faces: int

    @classmethod
    def build(cls, faces: np.ndarray) -> EdgeTable:
        """From faces [F, 3]. Give welded indices (`position_ids(vertices)[faces]`) to see through colour seams."""
        edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
        low, high = edges.min(axis=1).astype(np.int64), edges.max(axis=1).astype(np.int64)
        key = low * (int(faces.max(initial=0)) + 1) + high
        order = np.argsort(key, kind="stable")
        same_as_next = key[order][1:] == key[order][:-1]
        first, second = order[:-1][same_as_next], order[1:][same_as_next]
        forward = edges[:, 0] < edges[:, 1]
        alone = ~(np.r_[False, same_as_next] | np.r_[same_as_next, False])
        lonely = order[alone]
        return cls(
            np.stack([first // 3, second // 3], axis=1),
            forward[first] == forward[second],
            edges[lonely],
            lonely // 3,
            len(faces),
        )

    def adjacency(self, among: np.ndarray | None = None) -> sparse.csr_matrix:
        """Symmetric [F, F] matrix of neighbouring faces; `among` [F] keeps only links inside that mask."""
        pairs = self.pairs if among is None else self.pairs[among[self.pairs].all(axis=1)]
        ones = np.ones(len(pairs), dtype=np.int8)
        upper = sparse.coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(self.num_faces, self.num_faces))
        return (upper + upper.T).tocsr()

    def grow(self, mask: np.ndarray, rings: int) -> np.ndarray:
        """A face mask [F] grown by `rings` neighbours."""
        mask = mask.copy()
        a, b = self.pairs.T
        for _ in range(rings):
            touched_a, touched_b = a[mask[b]], b[mask[a]]
            mask[touched_a] = True
            mask[touched_b] = True
        return mask


def pieces(edges: EdgeTable, among: np.ndarray | None = None) -> tuple[int, np.ndarray]:
    """Connected pieces through shared edges: their number and the label [F] of each face.

    With `among` [F] only links inside the mask count, so faces outside it each become a piece of their own.
    """
    return csgraph.connected_components(edges.adjacency(among), directed=False)


def flips_to_agree(edges: EdgeTable) -> np.ndarray:
    """[F] bool: which faces to reverse so that neighbours wind alike, relative to one face of each piece.

    On a surface that cannot be oriented (a Moebius band) some edge stays inconsistent; no choice avoids that.
    """
    flip = np.zeros(edges.num_faces, dtype=bool)
    if not edges.flipped.any():
        return flip
    nowhere = edges.num_faces  # an artificial node that joins all pieces, so that one search reaches every face
    roots = np.unique(pieces(edges)[1], return_index=True)[1]
    rows = np.r_[edges.pairs[:, 0], roots]
    columns = np.r_[edges.pairs[:, 1], np.full(len(roots), nowhere)]
    shape = (nowhere + 1, nowhere + 1)
    graph = sparse.coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=shape).tocsr()
    _, parent = csgraph.breadth_first_order(graph, nowhere, directed=False)
    parent[nowhere] = nowhere
    opposite = sparse.coo_matrix((edges.flipped.astype(np.int8), edges.pairs.T), shape=shape).tocsr()
    opposite = opposite + opposite.T
    parity = np.asarray(opposite[np.arange(nowhere + 1), parent]).ravel() > 0
    # Pointer jumping: after k rounds `parity` covers the 2^k nearest links towards the root.
    while (parent != nowhere).any():
        parity = parity ^ parity[parent]
        parent = parent[parent]
    return parity[:nowhere]


def boundary_loops(edges: EdgeTable) -> list[np.ndarray]:
    """Closed chains of boundary edges as vertex indices, in the direction of the faces beside them.

    Where several boundaries touch in one vertex the chain takes any continuation; chains that do not close (possible
    only on non-manifold input) are left out.
    """
    following: dict[int, list[int]] = {}
    for start, end in edges.boundary.tolist():
        following.setdefault(start, []).append(end)
    loops = []
    for start in list(following):
        while following.get(start):
            chain, position = [], {}
            at = start
            while at not in position:
                position[at] = len(chain)
                chain.append(at)
                ends = following.get(at)
                if not ends:
                    chain = []
                    break
                at = ends.pop()
            if not chain:
                break
            # A chain that came back to its middle closed a smaller loop there; its tail is given back.
            loop_start = position[at]
            for a, b in zip(chain[:loop_start], chain[1 : loop_start + 1], strict=True):
                following[a].append(b)
            loops.append(np.array(chain[loop_start:]))
    return [loop for loop in loops if len(loop) >= 3]
