"""Dual marching cubes tables, worked out from the cube itself instead of being listed.

A cube with mixed corner signs is crossed by the surface in one to four separate patches; dual marching cubes (Nielson,
"Dual Marching Cubes", 2004) puts one vertex on each patch. A patch is a ring of crossed cube edges: on every face the
surface joins crossed edges pairwise, and following those joints around the cube closes the ring.

On a face whose corners alternate in sign there are two ways to join the four crossed edges. Here the two negative
(inside) corners are cut off separately. That choice leaves one flaw: a patch may touch such a face twice, and if the
cube on the other side does the same, four quads meet at one mesh edge. Those are the cases C16 and C19 of Nielson;
joining the shared face the other way in *both* cubes (using the patches of the complementary signs) repairs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Corner k sits at (k & 1, k >> 1 & 1, k >> 2 & 1): x runs fastest.
CORNERS = np.array([[k >> axis & 1 for axis in range(3)] for k in range(8)], dtype=np.int64)  # [8, 3]


def _list_edges() -> np.ndarray:
    """The twelve edges as corner pairs, in the order of the twelve beta channels of published decoders.

    Four edges around the face y = 0, the same four around y = 1, then the four edges along y.
    """
    ring = [0, 1, 5, 4]
    around = [(ring[i], ring[(i + 1) % 4]) for i in range(4)]
    return np.array(around + [(a + 2, b + 2) for a, b in around] + [(a, a + 2) for a in ring], dtype=np.int64)


EDGES = _list_edges()  # [12, 2]


def edge_index(a: int, b: int) -> int:
    """Row of `EDGES` that joins corners `a` and `b`."""
    return next(i for i, pair in enumerate(EDGES) if set(pair.tolist()) == {a, b})


@dataclass(frozen=True)
class DualTables:
    """What the 256 sign cases imply. Bit k of a case is set where corner k is inside (negative).

    Attributes:
        patch_of_edge: int8 [256, 12], number of the patch that crosses an edge, -1 where the edge is not crossed.
        patch_count: int8 [256], patches (dual vertices) of a case, 0 to 4.
        partner: int8 [256, 3], step to the neighbour behind the face that one patch touches twice; zeros if none.
    """

    patch_of_edge: np.ndarray
    patch_count: np.ndarray
    partner: np.ndarray


def _faces() -> list[tuple[np.ndarray, list[int], list[int]]]:
    """For each face: outward step [3], its corners in ring order, and the edge from each corner to the next."""
    faces = []
    for axis in range(3):
        u, v = 1 << (axis + 1) % 3, 1 << (axis + 2) % 3
        for side in range(2):
            base = side << axis
            corners = [base, base + u, base + u + v, base + v]
            edges = [edge_index(corners[i], corners[(i + 1) % 4]) for i in range(4)]
            step = np.zeros(3, dtype=np.int8)
            step[axis] = 2 * side - 1
            faces.append((step, corners, edges))
    return faces


def _join(edges: list[int], corners: list[int], inside: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of crossed edges that the surface joins on one face."""
    crossed = [e for e in edges if inside[EDGES[e, 0]] != inside[EDGES[e, 1]]]
    if len(crossed) < 4:
        return [(crossed[0], crossed[1])] if crossed else []
    return [(edges[i - 1], edges[i]) for i in range(4) if inside[corners[i]]]


@lru_cache(maxsize=1)
def dual_tables() -> DualTables:
    """Build the tables (about ten milliseconds, once per process)."""
    faces = _faces()
    patch_of_edge = np.full((256, 12), -1, dtype=np.int8)
    patch_count = np.zeros(256, dtype=np.int8)
    partner = np.zeros((256, 3), dtype=np.int8)
    for case in range(256):
        inside = np.array([case >> k & 1 for k in range(8)])
        joints = [_join(edges, corners, inside) for _, corners, edges in faces]

        neighbours: dict[int, list[int]] = {}
        for a, b in (pair for pairs in joints for pair in pairs):
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
        for start in sorted(neighbours):
            if patch_of_edge[case, start] >= 0:
                continue
            pending = [start]
            while pending:
                edge = pending.pop()
                if patch_of_edge[case, edge] < 0:
                    patch_of_edge[case, edge] = patch_count[case]
                    pending.extend(neighbours[edge])
            patch_count[case] += 1

        for (step, _, _), pairs in zip(faces, joints, strict=True):
            if len(pairs) == 2 and patch_of_edge[case, pairs[0][0]] == patch_of_edge[case, pairs[1][0]]:
                partner[case] = step
    return DualTables(patch_of_edge, patch_count, partner)
