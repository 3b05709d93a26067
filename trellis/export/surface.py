"""The triangle mesh that the export steps hand to each other, as plain numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trellis.errors import InputError
from trellis.renderers.numba_runtime import exclusive, kernel

_FARTHEST = 1e6  # object units from the origin; squares of squares of lengths must stay within float32


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles in the object frame (right-handed, z up).

    Attributes:
        vertices: [V, 3] float32.
        faces: [F, 3] int32, counter-clockwise seen from outside.
        colors: [V, 3] float32 sRGB in [0, 1], or None.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray | None = None

    def select_faces(self, keep: np.ndarray) -> Surface:
        """The faces of a mask [F] or index [K], with the vertices that only other faces used removed."""
        return self.with_faces(self.faces[keep])

    def with_faces(self, faces: np.ndarray) -> Surface:
        """Other faces [K, 3] over the same vertices; unreferenced vertices are removed, their order is kept."""
        with exclusive():
            used, renumbered = _renumbered(np.ascontiguousarray(faces, dtype=np.int32), len(self.vertices))
        colors = None if self.colors is None else self.colors[used]
        return Surface(self.vertices[used], renumbered, colors)

    def corner_positions(self) -> np.ndarray:
        """[F, 3, 3] float64: the three corners of every face (double, because they get subtracted)."""
        return self.vertices[self.faces].astype(np.float64)

    def face_vectors(self) -> np.ndarray:
        """[F, 3] float64: outward normals whose length is twice the area of the face."""
        vectors = np.empty((len(self.faces), 3))
        with exclusive():
            _cross_products(np.ascontiguousarray(self.vertices), np.ascontiguousarray(self.faces), vectors)
        return vectors

    def face_normals(self) -> np.ndarray:
        """[F, 3] float32, unit; zero for a face without area."""
        return unit(self.face_vectors()).astype(np.float32)

    def face_areas(self) -> np.ndarray:
        """[F] float64, object units squared."""
        vectors = self.face_vectors()
        return 0.5 * np.sqrt(np.einsum("fk,fk->f", vectors, vectors))

    def vertex_normals(self) -> np.ndarray:
        """[V, 3] float32 unit normals, the area-weighted mean of the faces around a vertex (+z where it vanishes)."""
        vectors = self.face_vectors()
        corners = self.faces.ravel()
        count = len(self.vertices)
        sums = np.stack([np.bincount(corners, np.repeat(vectors[:, k], 3), count) for k in range(3)], axis=1)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        normals = np.divide(sums, lengths, out=np.tile([0.0, 0.0, 1.0], (count, 1)), where=lengths > 1e-20)
        return normals.astype(np.float32)

    def bounding_sphere(self) -> tuple[np.ndarray, float]:
        """Centre [3] and radius of the sphere around the middle of the bounding box (not the smallest one)."""
        x, y, z = axes = np.ascontiguousarray(self.vertices.T)  # numpy is slow to reduce along rows of three
        center = 0.5 * (axes.min(axis=1) + axes.max(axis=1)).astype(np.float64)
        squared = (x - center[0]) ** 2 + (y - center[1]) ** 2 + (z - center[2]) ** 2
        return center, float(np.sqrt(squared.max()))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, 3] made one long; what has no length stays nothing."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-20)


def surface_of(mesh: Any) -> Surface:
    """Read a decoded mesh: anything with `vertices` [V, 3], `faces` [F, 3] and, optionally, `vertex_attrs` [V, 3+].

    The first three attribute channels are taken as sRGB in [0, 1]. Tensors on any device and arrays are accepted.

    Raises:
        InputError: the mesh has no faces, has arrays of another shape, has a face index out of range, or is too large.
    """
    if isinstance(mesh, Surface):
        return mesh
    vertices, faces = _array(mesh.vertices, np.float32), _array(mesh.faces, np.int64)
    attributes = getattr(mesh, "vertex_attrs", None)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or (faces.size and (faces.ndim != 2 or faces.shape[1] != 3)):
        raise InputError(
            "A mesh needs vertices [V, 3] and triangles [F, 3], "
            f"but came with {list(vertices.shape)} and {list(faces.shape)}."
        )
    if len(vertices) == 0 or len(faces) == 0:
        raise InputError("The mesh is empty: no surface was found in the decoded volume, so nothing can be exported.")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError(
            f"A triangle refers to vertex {int(faces.max() if faces.max() >= len(vertices) else faces.min())}, "
            f"but the mesh has {len(vertices)} vertices."
        )
    farthest = float(np.abs(vertices, where=np.isfinite(vertices), out=np.zeros_like(vertices)).max())
    if farthest > _FARTHEST:
        raise InputError(f"The mesh reaches {farthest:.1e} units from the origin, but may at most {_FARTHEST:.0e}.")
    colors = None
    if attributes is not None:
        colors = np.nan_to_num(_array(attributes, np.float32)[:, :3], nan=0.5).clip(0, 1)
        if colors.shape != vertices.shape:
            raise InputError(f"Vertex colours must be [{len(vertices)}, 3], but came as {list(colors.shape)}.")
    return Surface(vertices, faces.astype(np.int32), colors)


@kernel
def _renumbered(faces, count):
    """Which of `count` vertices faces [K, 3] use, in their order, and the faces over these alone."""
    number = np.zeros(count, dtype=np.int32)
    for face in range(len(faces)):
        for k in range(3):
            number[faces[face, k]] = 1
    used = np.empty(number.sum(), dtype=np.int64)
    found = 0
    for vertex in range(count):
        if number[vertex]:
            used[found], number[vertex] = vertex, found
            found += 1
    renumbered = np.empty_like(faces)
    for face in range(len(faces)):
        for k in range(3):
            renumbered[face, k] = number[faces[face, k]]
    return used, renumbered


@kernel
def _cross_products(vertices, faces, vectors):
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, az = np.float64(vertices[a, 0]), np.float64(vertices[a, 1]), np.float64(vertices[a, 2])
        ux, uy, uz = vertices[b, 0] - ax, vertices[b, 1] - ay, vertices[b, 2] - az
        vx, vy, vz = vertices[c, 0] - ax, vertices[c, 1] - ay, vertices[c, 2] - az
        vectors[face, 0] = uy * vz - uz * vy
        vectors[face, 1] = uz * vx - ux * vz
        vectors[face, 2] = ux * vy - uy * vx


def _array(values: Any, dtype: type) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
    return np.ascontiguousarray(values, dtype=dtype)
