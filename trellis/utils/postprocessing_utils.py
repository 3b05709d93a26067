"""Export under the names of the original package; the work is done in `trellis.export`."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any

from trellis.export.clean import CleanOptions
from trellis.export.photographs import Photographs
from trellis.export.pipeline import ExportOptions, export_mesh
from trellis.representations.gaussian import Gaussian

if TYPE_CHECKING:
    import trimesh


def to_glb(
    gaussian: Gaussian | None,
    mesh: Any,
    simplify: float = 0.95,
    texture_size: int = 1024,
    fill_holes: bool = True,
    fill_holes_max_size: float = 0.04,
    max_faces: int | None = 10_000,
    callback: Callable[[str, int, int], None] | None = None,
    verbose: bool = False,
    target_faces: int | None = None,
    watertight: bool = False,
    photographs: Photographs | None = None,
    longest_side: float | None = None,
    file: str | PathLike[str] | None = None,
    image_format: str = "png",
) -> trimesh.Trimesh:
    """A textured mesh in the glTF frame, (x, y, z) -> (x, z, -y); `.export("x.glb")` writes it.

    Args:
        gaussian: splats that give the colours; None takes the mesh's vertex colours.
        mesh: decoded mesh in the object frame.
        simplify: fraction of the triangles to remove, in [0, 1).
        texture_size: side of the texture in texels.
        fill_holes: whether to close small holes.
        fill_holes_max_size: area of the largest hole to close, object units squared.
        max_faces: bound on the triangles whatever `simplify` says; None lifts it. Without effect on `target_faces`.
        callback: called as (stage, step, of); may raise to stop.
        verbose: print each stage as it starts and ends.
        target_faces: number of triangles to aim at, instead of a fraction.
        watertight: close every hole, for printing.
        photographs: pictures with cameras in the object frame, which replace the colours where they see the surface
            well.
        longest_side: metres of the longest side of the result; None keeps one object unit as one metre.
        file: also write the asset here, complete or not at all: .glb, .zip (OBJ, MTL and PNG) or .stl.
        image_format: texture inside that GLB, "png" or (lossless) "webp".

    Raises:
        InputError: see `trellis.export.export_mesh` and `TexturedMesh.export`; an earlier `file` stays then.
    """
    options = ExportOptions(
        max_faces=max_faces if target_faces is None else None,
        target_faces=target_faces,
        clean=CleanOptions(fill_holes=fill_holes, max_hole_area=fill_holes_max_size, watertight=watertight),
    )

    def report(stage: str, step: int, of: int) -> None:
        if verbose and step in (0, of):
            print(f"{stage}: {'done' if step else 'started'}", flush=True)
        if callback is not None:
            callback(stage, step, of)

    asset = export_mesh(mesh, gaussian, simplify, texture_size, options, report, photographs)
    if file is not None:
        asset.export(file, longest_side, image_format)
    return asset.to_trimesh(longest_side)
