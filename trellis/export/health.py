"""What a person wants to know about a mesh before using it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trellis.export.gltf import TexturedMesh
from trellis.export.surface import Surface
from trellis.export.topology import EdgeTable, flips_to_agree, pieces, position_ids
from trellis.renderers import mesh_raster


@dataclass(frozen=True)
class MeshHealth:
    """Counts over vertices welded by place, so that texture seams are no holes.

    Attributes:
        faces, vertices: triangles, and distinct places of their corners.
        components: pieces that share no edge.
        watertight: every edge joins exactly two faces that wind alike.
        boundary_edges: edges of one face only: the rims of holes.
        non_manifold_edges: edges of more than two faces.
        flipped_faces: faces that wind against most of their piece.
        degenerate_faces: faces without area.
        charts: texture charts.
        uv_coverage: part of the texture that charts cover, 0 to 1.
        uv_overlap: part of the covered texels that more than one face claims, 0 to 1.
        texels_per_unit: texels along one object unit of surface, from total areas.
        texture_size: side of the texture in texels.
        surface_area: object units squared.
        hausdorff: greatest distance to the surface before simplification, object units; None if not measured.
        file_bytes: size of the exported file; None if not given.
    """

    faces: int
    vertices: int
    components: int
    watertight: bool
    boundary_edges: int
    non_manifold_edges: int
    flipped_faces: int
    degenerate_faces: int
    charts: int
    uv_coverage: float
    uv_overlap: float
    texels_per_unit: float
    texture_size: int
    surface_area: float
    hausdorff: float | None = None
    file_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self)

    @property
    def concerns(self) -> list[str]:
        """What may trouble a later tool, one short sentence each; empty for a mesh without faults."""
        notes = []
        if self.non_manifold_edges:
            notes.append(f"{self.non_manifold_edges} edges belong to more than two faces.")
        if self.boundary_edges:
            notes.append(f"The surface is open: {self.boundary_edges} edges lie on the rim of a hole.")
        if self.flipped_faces:
            notes.append(f"{self.flipped_faces} faces are turned inside out.")
        if self.degenerate_faces:
            notes.append(f"{self.degenerate_faces} faces have no area.")
        if self.uv_overlap > 0.001:
            notes.append(f"{self.uv_overlap:.1%} of the texture is claimed twice.")
        return notes


def mesh_health(
    mesh: TexturedMesh, file: str | PathLike[str] | None = None, hausdorff: float | None = None
) -> MeshHealth:
    """Measure an asset; a fraction of a second for 25k faces and a texture of 2048.

    Args:
        mesh: the asset.
        file: exported file whose size is reported.
        hausdorff: distance to report, from `distance.surface_distance`.
    """
    surface = Surface(mesh.vertices, mesh.faces)
    ids = position_ids(mesh.vertices)[mesh.faces]
    edges = EdgeTable.build(ids)
    areas = surface.face_areas()
    area = float(areas.sum())
    size = mesh.texture.shape[0]
    coverage, overlap = _coverage(mesh, size)
    chart_edges = EdgeTable.build(mesh.faces)
    return MeshHealth(
        faces=len(mesh.faces),
        vertices=int(ids.max()) + 1,
        components=pieces(edges)[0],
        watertight=edges.closed,
        boundary_edges=int((edges.uses == 1).sum()),
        non_manifold_edges=int((edges.uses > 2).sum()),
        flipped_faces=_flipped(edges),
        degenerate_faces=int((areas <= 0).sum()),
        charts=pieces(chart_edges)[0],
        uv_coverage=coverage,
        uv_overlap=overlap,
        texels_per_unit=size * float(np.sqrt(coverage / area)) if area > 0 else 0.0,
        texture_size=size,
        surface_area=area,
        hausdorff=hausdorff,
        file_bytes=None if file is None else Path(file).stat().st_size,
    )


def _flipped(edges: EdgeTable) -> int:
    flip = flips_to_agree(edges)
    number, labels = pieces(edges)
    turned = np.bincount(labels, flip, number)
    return int(np.minimum(turned, np.bincount(labels, minlength=number) - turned).sum())


def _coverage(mesh: TexturedMesh, size: int) -> tuple[float, float]:
    """Part of the texture that faces cover, and part of that which two faces cover.

    Rasterised twice, with the faces in opposite order: of two faces on one texel, the first wins.
    """
    screen = np.concatenate([mesh.uvs * size, np.ones((len(mesh.uvs), 1))], axis=1).astype(np.float32)
    points, number = torch.from_numpy(screen), len(mesh.faces)
    forward = mesh_raster.rasterize(points, torch.from_numpy(mesh.faces), size, size)
    backward = mesh_raster.rasterize(points, torch.from_numpy(mesh.faces[::-1].copy()), size, size)
    first, last = forward.face_ids.numpy(), number - 1 - backward.face_ids.numpy()
    covered = first >= 0
    # A centre on the shared side of two faces is claimed by both without harm.
    inner = _inside(forward.barycentrics.numpy()) & _inside(backward.barycentrics.numpy())
    twice = covered & inner & (first != last)
    return float(covered.mean()), float(twice.sum() / max(covered.sum(), 1))


def _inside(barycentrics: np.ndarray) -> np.ndarray:
    a, b, c = np.moveaxis(barycentrics, 2, 0)  # numpy is slow to reduce an axis of three
    return (a > 1e-3) & (b > 1e-3) & (c > 1e-3)
