"""Adjacency of triangle soups by array operations: edges, neighbours, pieces, boundary loops, orientation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from trellis.renderers.numba_runtime import exclusive, kernel

if TYPE_CHECKING:
    from trellis.export.surface import Surface


def position_ids(vertices: np.ndarray) -> np.ndarray:
    """[V] int32: the same number for vertices [V, 3] at exactly the same float32 place (colour seams split them)."""
    return row_ids(np.asarray(vertices, dtype=np.float32) + np.float32(0))  # adding zero turns -0.0 into 0.0


def row_ids(rows: np.ndarray) -> np.ndarray:
    """[N] int32: the same number for equal rows of [N, 3] (32 bits each); numbers follow the first appearances."""
    with exclusive():
        return _numbered(np.ascontiguousarray(rows).view(np.uint32))


def first_rows(ids: np.ndarray) -> np.ndarray:
    """Where each of the numbers [N] that `row_ids` or `position_ids` gave appears first, in their order."""
    return np.flatnonzero(np.diff(np.maximum.accumulate(ids), prepend=-1) > 0)


@kernel
def _numbered(rows):
    """`row_ids` by a hash table with linear probing, at most half full."""
    count = len(rows)
    bits = np.uint64(4)
    while (1 << bits) < 2 * count:
        bits += np.uint64(1)
    mask = np.uint64((1 << bits) - 1)
    table = np.full(1 << bits, -1, dtype=np.int32)  # first row of each kind
    ids = np.empty(count, dtype=np.int32)
    number = 0
    for i in range(count):
        a, b, c = rows[i, 0], rows[i, 1], rows[i, 2]
        # Odd multipliers near 2^64 over the golden ratio and its powers; the high bits of a product are the mixed ones.
        mixed = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(32)) ^ np.uint64(b)) * np.uint64(0xC2B2AE3D27D4EB4F)
        mixed = (mixed ^ (mixed >> np.uint64(29)) ^ np.uint64(c)) * np.uint64(0x165667B19E3779F9)
        slot = mixed >> (np.uint64(64) - bits)
        while True:
            other = table[slot]
            if other < 0:
                table[slot] = i
                ids[i] = number
                number += 1
                break
            if rows[other, 0] == a and rows[other, 1] == b and rows[other, 2] == c:
                ids[i] = ids[other]
                break
            slot = (slot + np.uint64(1)) & mask
    return ids


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """Every half edge of a mesh, and the pairs of faces that meet along an edge.

    Attributes:
        pairs: [P, 2] int32 face indices sharing an edge; k faces on one edge give k - 1 pairs, of faces that run along
            it in opposite directions as long as there are such.
        flipped: [P] bool, whether the two faces run along their edge in the same direction (opposite winding).
        boundary: [B, 2] int32 directed edges that belong to one face only, in the direction of that face.
        boundary_faces: [B] int32, that face.
        uses: [E] int32, how many faces each edge has.
        num_faces: number of faces.
    """

    pairs: np.ndarray
    flipped: np.ndarray
    boundary: np.ndarray
    boundary_faces: np.ndarray
    uses: np.ndarray
    num_faces: int

    @classmethod
    def build(cls, faces: np.ndarray) -> EdgeTable:
        """From faces [F, 3] alone: faces meet where they share the numbers of two vertices."""
        order, starts, forward = half_edges_by_edge(faces)
        with exclusive():
            pairs, flipped = _pairs_on_edges(order, starts, forward)
        uses = np.diff(starts)
        lonely = order[starts[:-1][uses == 1]]
        owner, corner = lonely // 3, lonely % 3
        boundary = np.stack([faces[owner, corner], faces[owner, (corner + 1) % 3]], axis=1)
        return cls(pairs, flipped, boundary, owner, uses, len(faces))

    @classmethod
    def welded(cls, surface: Surface) -> EdgeTable:
        """Of a surface, through its seams: faces meet where their vertices are at the same places.

        Vertices in `boundary` are then numbered as by `position_ids`.
        """
        return cls.build(position_ids(surface.vertices)[surface.faces])

    @property
    def closed(self) -> bool:
        """Whether every edge joins exactly two faces that wind alike, so that the surface bounds a volume."""
        return bool((self.uses == 2).all()) and not self.flipped.any()

    def adjacency(self) -> sparse.csr_matrix:
        """Symmetric [F, F] matrix of neighbouring faces."""
        ones = np.ones(len(self.pairs), dtype=np.int8)
        upper = sparse.coo_matrix((ones, self.pairs.T), shape=(self.num_faces, self.num_faces))
        return (upper + upper.T).tocsr()

    def grow(self, mask: np.ndarray, rings: int) -> np.ndarray:
        """A face mask [F] grown by `rings` neighbours."""
        for _ in range(rings):
            grown = mask.copy()
            with exclusive():
                _reach_over(self.pairs, mask, grown)
            mask = grown
        return mask


@kernel
def _reach_over(pairs, mask, grown):
    for i in range(len(pairs)):
        a, b = pairs[i, 0], pairs[i, 1]
        grown[a] |= mask[b]
        grown[b] |= mask[a]


def pieces(edges: EdgeTable, among: np.ndarray | None = None) -> tuple[int, np.ndarray]:
    """Connected pieces through shared edges: their number and the label [F] of each face, by first appearance.

    With `among` [F] only links inside the mask count, so faces outside it each become a piece of their own.
    """
    pairs = edges.pairs if among is None else edges.pairs[among[edges.pairs[:, 0]] & among[edges.pairs[:, 1]]]
    with exclusive():
        labels = _joined(pairs, edges.num_faces)
    return int(labels.max(initial=-1)) + 1, labels


@kernel
def _joined(pairs, count):
    """Labels [count] of what the pairs join: union by lowest index, with paths halved."""
    parent = np.arange(count, dtype=np.int32)
    for i in range(len(pairs)):
        a, b = pairs[i, 0], pairs[i, 1]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        parent[max(a, b)] = min(a, b)
    number = 0
    labels = np.empty(count, dtype=np.int32)
    for i in range(count):
        if parent[i] == i:
            labels[i] = number
            number += 1
        else:  # a parent comes before its children
            labels[i] = labels[parent[i]]
    return labels


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


def half_edges_by_edge(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half edges 3 f + k (from corner k of face f to the next one) of faces [F, 3], sorted by the edge they lie on.

    Returns:
        order: int32 [3F]; within an edge, directions alternate as long as both are left.
        starts: int32 [E + 1], where in `order` each edge begins.
        forward: bool [3F], by half edge: whether it runs from the lower to the higher vertex.
    """
    with exclusive():
        return _sorted_half_edges(np.ascontiguousarray(faces, dtype=np.int32))


@kernel
def _sorted_half_edges(faces):
    """By counting the lower vertices; among the half edges of each by (higher vertex, half edge) as one number."""
    count = 3 * len(faces)
    vertices = 0
    for f in range(len(faces)):
        vertices = max(vertices, faces[f, 0], faces[f, 1], faces[f, 2])
    bucket = np.zeros(vertices + 3, dtype=np.int64)
    for f in range(len(faces)):
        for k in range(3):
            bucket[min(faces[f, k], faces[f, (k + 1) % 3]) + 2] += 1
    for v in range(vertices + 2):
        bucket[v + 1] += bucket[v]
    keys = np.empty(count, dtype=np.int64)
    forward = np.empty(count, dtype=np.bool_)
    for f in range(len(faces)):
        for k in range(3):
            a, b = faces[f, k], faces[f, (k + 1) % 3]
            slot = min(a, b) + 1
            keys[bucket[slot]] = np.int64(max(a, b)) << 32 | (3 * f + k)
            bucket[slot] += 1
            forward[3 * f + k] = a < b
    order = np.empty(count, dtype=np.int32)
    starts = np.empty(count + 1, dtype=np.int32)
    edges = 0
    for v in range(vertices + 1):
        first, last = bucket[v], bucket[v + 1]
        if last - first > 64:  # a hub of thousands of faces; sorting by insertion would take its square
            keys[first:last].sort()
        else:
            for i in range(first + 1, last):
                key, j = keys[i], i
                while j > first and keys[j - 1] > key:
                    keys[j] = keys[j - 1]
                    j -= 1
                keys[j] = key
        i = first
        while i < last:
            starts[edges] = i
            edges += 1
            end = i
            while end < last and keys[end] >> 32 == keys[i] >> 32:
                order[end] = keys[end] & 0xFFFFFFFF
                end += 1
            for j in range(i + 1, end):
                if forward[order[j]] == forward[order[j - 1]]:
                    for other in range(j + 1, end):
                        if forward[order[other]] != forward[order[j]]:
                            order[j], order[other] = order[other], order[j]
                            break
            i = end
    starts[edges] = count
    return order, starts[: edges + 1], forward


@kernel
def _pairs_on_edges(order, starts, forward):
    """`EdgeTable.pairs` and `EdgeTable.flipped`: of half edges that follow each other on one edge."""
    count = len(order) - (len(starts) - 1)
    pairs = np.empty((count, 2), dtype=np.int32)
    flipped = np.empty(count, dtype=np.bool_)
    i = 0
    for edge in range(len(starts) - 1):
        for j in range(starts[edge], starts[edge + 1] - 1):
            pairs[i, 0], pairs[i, 1] = order[j] // 3, order[j + 1] // 3
            flipped[i] = forward[order[j]] == forward[order[j + 1]]
            i += 1
    return pairs, flipped
