"""Faces prepared for the rasteriser: checked once per face tensor, with the edges and the vertices opposite to them."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from trellis.errors import InputError
from trellis.renderers.numba_runtime import exclusive, kernel


@dataclass(frozen=True, eq=False)
class Edges:
    """Undirected edges of a mesh in compressed rows: edge e has the opposites `opposites[starts[e]:starts[e + 1]]`.

    Attributes:
        vertices: [E, 2] int32, the lower index first.
        starts: [E + 1] int32.
        opposites: [<= 3F] int32, the third vertex of each face at the edge: one at a boundary, two inside a manifold.
    """

    vertices: np.ndarray
    starts: np.ndarray
    opposites: np.ndarray


@dataclass(frozen=True, eq=False)
class FaceTable:
    """Triangles as the kernels want them: C-contiguous int32 on the CPU, all indices >= 0 and <= `max_index`."""

    triangles: np.ndarray
    max_index: int = field(default=-1)

    @cached_property
    def edges(self) -> Edges:
        with exclusive():
            return Edges(*_build_edges(self.triangles, self.max_index + 1))

    def require_vertices(self, count: int) -> None:
        """Raise unless every index is below `count`."""
        if self.max_index >= count:
            raise InputError(f"The faces refer to vertex {self.max_index}, but there are only {count} vertices.")


_tables: dict[int, tuple[weakref.ref, int, FaceTable]] = {}
_tables_lock = threading.RLock()  # re-entrant: a weak reference may call back while the lock is held


def face_table(faces: torch.Tensor) -> FaceTable:
    """The table of a face tensor [F, 3] of any integer type and device; remembered while the tensor lives unchanged.

    Raises:
        InputError: not [F, 3], not integers, or a negative index.
    """
    version = 0 if faces.is_inference() else faces._version
    key = id(faces)
    with _tables_lock:
        entry = _tables.get(key)
        if entry is not None and entry[0]() is faces and entry[1] == version:
            return entry[2]
    table = _make_table(faces)

    def forget(reference: weakref.ref) -> None:
        with _tables_lock:
            if key in _tables and _tables[key][0] is reference:
                del _tables[key]

    with _tables_lock:
        _tables[key] = (weakref.ref(faces, forget), version, table)
    return table


def _make_table(faces: torch.Tensor) -> FaceTable:
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise InputError(f"Faces must be [F, 3], but came as {list(faces.shape)}.")
    if faces.is_floating_point() or faces.dtype == torch.bool:
        raise InputError(f"Faces must be integers, but came as {faces.dtype}.")
    if faces.numel() == 0:
        return FaceTable(np.zeros((0, 3), np.int32))
    low, high = (int(bound) for bound in faces.aminmax())
    if low < 0:
        raise InputError(f"Faces must not be negative, but one index is {low}.")
    # A copy even when the type fits, so that later edits of the tensor cannot reach a remembered table.
    triangles = np.array(faces.detach().cpu().numpy(), dtype=np.int32, order="C")
    return FaceTable(triangles, high)


@kernel
def _build_edges(triangles: np.ndarray, num_vertices: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bucket the half edges by their lower vertex, then sort each short bucket by the higher one (stable)."""
    bucket_starts = np.zeros(num_vertices + 1, np.int32)
    for face in range(len(triangles)):
        for corner in range(3):
            a, b = triangles[face, corner], triangles[face, (corner + 1) % 3]
            if a != b:
                bucket_starts[min(a, b) + 1] += 1
    for vertex in range(num_vertices):
        bucket_starts[vertex + 1] += bucket_starts[vertex]
    total = bucket_starts[num_vertices]

    higher = np.empty(total, np.int32)
    opposites = np.empty(total, np.int32)
    filled = np.zeros(num_vertices, np.int32)
    for face in range(len(triangles)):
        for corner in range(3):
            a, b = triangles[face, corner], triangles[face, (corner + 1) % 3]
            if a == b:
                continue
            low, high = min(a, b), max(a, b)
            begin = bucket_starts[low]
            slot = begin + filled[low]
            filled[low] += 1
            while slot > begin and higher[slot - 1] > high:
                higher[slot] = higher[slot - 1]
                opposites[slot] = opposites[slot - 1]
                slot -= 1
            higher[slot] = high
            opposites[slot] = triangles[face, (corner + 2) % 3]

    edges = np.empty((total, 2), np.int32)
    starts = np.empty(total + 1, np.int32)
    count = 0
    for low in range(num_vertices):
        for slot in range(bucket_starts[low], bucket_starts[low + 1]):
            if slot == bucket_starts[low] or higher[slot] != higher[slot - 1]:
                edges[count, 0] = low
                edges[count, 1] = higher[slot]
                starts[count] = slot
                count += 1
    starts[count] = total
    return edges[:count].copy(), starts[: count + 1].copy(), opposites
