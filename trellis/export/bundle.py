"""Every file of an asset, written side by side in one frame and one scale."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from trellis.errors import InputError
from trellis.export.frame import metres_per_unit, scaled_cameras
from trellis.export.glb import glb_bytes
from trellis.export.gltf import TexturedMesh
from trellis.export.obj import obj_zip_bytes, stl_bytes
from trellis.export.splats import save_ply, save_spz
from trellis.files import replacing
from trellis.renderers.camera_formats import to_colmap_text, to_transforms
from trellis.renderers.cameras import Cameras
from trellis.representations.gaussian import Gaussian

FORMATS = {
    "glb": "textured mesh (PBR)",
    "obj": "textured mesh as OBJ, MTL and PNG in a zip",
    "stl": "mesh for printing",
    "ply": "Gaussian splats",
    "spz": "Gaussian splats, compressed",
    "transforms": "cameras as NeRF transforms.json",
    "colmap": "cameras as COLMAP cameras.txt and images.txt",
}
_NEEDS = {"ply": "Gaussians", "spz": "Gaussians", "transforms": "cameras", "colmap": "cameras"}


def export_files(
    folder: str | PathLike[str],
    mesh: TexturedMesh,
    gaussian: Gaussian | None = None,
    cameras: Cameras | None = None,
    image_names: Sequence[str] | None = None,
    formats: Iterable[str] = ("glb",),
    longest_side: float | None = None,
    image_format: str = "png",
    name: str = "asset",
) -> dict[str, list[Path]]:
    """Write an asset in several formats, all in the glTF frame and of one size.

    Args:
        folder: created if it is missing. Each file appears complete or not at all, and replaces an earlier one.
        mesh: the asset, object frame.
        gaussian: splats in the object frame, for "ply" and "spz".
        cameras: of the photographs, object frame, for "transforms" and "colmap".
        image_names: paths of the photographs as the camera files shall name them; default view_000.png and so on.
        formats: keys of `FORMATS`.
        longest_side: metres of the longest side of the mesh; None keeps one object unit as one metre.
        image_format: texture inside the GLB, "png" or "webp".
        name: stem of the file names.

    Returns:
        The files written for each format.

    Raises:
        InputError: an unknown format, something that a format needs is missing, or a length that cannot be; nothing
            has been written then.
    """
    formats, folder = list(dict.fromkeys(formats)), Path(folder)
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise InputError(f"There is no export format {unknown[0]!r}; choose from {', '.join(FORMATS)}.")
    have = {"Gaussians": gaussian is not None and len(gaussian) > 0, "cameras": cameras is not None}
    for f in formats:
        if f in _NEEDS and not have[_NEEDS[f]]:
            raise InputError(f"The format {f!r} ({FORMATS[f]}) needs {_NEEDS[f]}, and this asset has none.")
    scale = metres_per_unit(mesh.vertices, longest_side)
    if cameras is not None:
        cameras = scaled_cameras(cameras, scale)
        image_names = image_names or [f"view_{k:03}.png" for k in range(len(cameras))]

    written: dict[str, list[Path]] = {}
    for f in formats:
        if f in ("ply", "spz"):
            written[f] = [folder / f"{name}.{f}"]
            folder.mkdir(parents=True, exist_ok=True)
            (save_ply if f == "ply" else save_spz)(written[f][0], gaussian, scale)
            continue
        if f == "glb":
            contents = {f"{name}.glb": glb_bytes(mesh, scale, image_format)}
        elif f == "obj":
            contents = {f"{name}_obj.zip": obj_zip_bytes(mesh, scale, name)}
        elif f == "stl":
            contents = {f"{name}.stl": stl_bytes(mesh, scale)}
        elif f == "transforms":
            contents = {"transforms.json": json.dumps(to_transforms(cameras, image_names), indent=2).encode()}
        else:
            texts = to_colmap_text(cameras, image_names)
            # COLMAP refuses a model without its third file, which may be empty.
            contents = dict(zip(("cameras.txt", "images.txt", "points3D.txt"), (*texts, ""), strict=True))
            contents = {f"colmap/{file}": text.encode() for file, text in contents.items()}
        written[f] = [folder / file for file in contents]
        for file, content in contents.items():
            with replacing(folder / file) as temporary:
                temporary.write_bytes(content)
    return written
