"""The triangle mesh that the mesh decoder returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(eq=False)
class MeshExtractResult:
    """Triangles in the object frame (z up, inside [-0.5, 0.5]^3).

    Attributes:
        vertices: float [V, 3].
        faces: int64 [F, 3], counter-clockwise seen from outside.
        vertex_attrs: float [V, 6] or None: rgb in [0, 1], then a normal as predicted, also mapped to [0, 1].
        res: cubes per axis of the grid the mesh was extracted on.
        corner_positions: float [C, 3] or None, displaced grid corners (training only).
        corner_sdf: float [C] or None, signed distance there, negative inside (training only).
        regularizers: scalar losses of the extraction by name (training only).

    Raises:
        ValueError: shapes that do not fit together, or faces that are not integers.
    """

    vertices: Tensor
    faces: Tensor
    vertex_attrs: Tensor | None = None
    res: int = 64
    corner_positions: Tensor | None = None
    corner_sdf: Tensor | None = None
    regularizers: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in (("vertices", self.vertices), ("faces", self.faces)):
            if tensor.dim() != 2 or tensor.shape[1] != 3:
                raise ValueError(f"{name} must have shape [n, 3], got {tuple(tensor.shape)}.")
        if self.faces.is_floating_point():
            raise ValueError(f"faces must be integers, got {self.faces.dtype}.")
        if self.vertex_attrs is not None and len(self.vertex_attrs) != len(self.vertices):
            raise ValueError(f"vertex_attrs has {len(self.vertex_attrs)} rows for {len(self.vertices)} vertices.")
        self.faces = self.faces.long()

    @property
    def device(self) -> torch.device:
        return self.vertices.device

    @property
    def is_finite(self) -> bool:
        """Whether every vertex and vertex attribute is a finite number."""
        attributes = self.vertex_attrs is None or bool(torch.isfinite(self.vertex_attrs).all())
        return attributes and bool(torch.isfinite(self.vertices).all())

    @property
    def success(self) -> bool:
        """Whether there is a surface and it can be used: at least one face, and nothing infinite or NaN."""
        return len(self.faces) > 0 and self.is_finite

    @property
    def bounds(self) -> Tensor:
        """Smallest and largest vertex coordinates, float [2, 3].

        Raises:
            ValueError: the mesh has no vertices.
        """
        if len(self.vertices) == 0:
            raise ValueError("An empty mesh has no bounds.")
        return torch.stack([self.vertices.amin(0), self.vertices.amax(0)])

    @cached_property
    def face_normal(self) -> Tensor:
        """Outward unit normals, float [F, 3]; zero for a face without area."""
        return normalize(self._face_cross(), dim=1)

    @cached_property
    def vertex_normal(self) -> Tensor:
        """Unit normals, the area-weighted mean over the faces at each vertex, float [V, 3]; zero at unused vertices."""
        cross = self._face_cross().repeat_interleave(3, dim=0)
        return normalize(torch.zeros_like(self.vertices).index_add(0, self.faces.reshape(-1), cross), dim=1)

    def to(self, device: torch.device | str) -> MeshExtractResult:
        """The same mesh on another device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return MeshExtractResult(
            vertices=self.vertices.to(device),
            faces=self.faces.to(device),
            vertex_attrs=move(self.vertex_attrs),
            res=self.res,
            corner_positions=move(self.corner_positions),
            corner_sdf=move(self.corner_sdf),
            regularizers={name: loss.to(device) for name, loss in self.regularizers.items()},
        )

    def _face_cross(self) -> Tensor:
        """Normals with twice the face's area as length, float [F, 3]."""
        a, b, c = self.vertices[self.faces].unbind(1)
        return torch.linalg.cross(b - a, c - a)
