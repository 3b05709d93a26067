"""Wavefront OBJ with its material and texture in one zip, and binary STL."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from trellis.export.frame import to_gltf_frame
from trellis.export.glb import encode_image

if TYPE_CHECKING:
    from trellis.export.gltf import TexturedMesh

_WRITTEN = (1980, 1, 1, 0, 0, 0)  # a fixed date: the same asset gives the same bytes


def obj_zip_bytes(mesh: TexturedMesh, scale: float = 1.0, name: str = "object") -> bytes:
    """`name`.obj, `name`.mtl and `name`.png in a zip; glTF frame, `scale` metres per object unit."""
    stream = io.BytesIO()
    entries = (
        (f"{name}.obj", _obj_text(mesh, scale, name).encode(), zipfile.ZIP_DEFLATED),
        (f"{name}.mtl", _mtl_text(name).encode(), zipfile.ZIP_DEFLATED),
        (f"{name}.png", encode_image(mesh.texture), zipfile.ZIP_STORED),
    )
    with zipfile.ZipFile(stream, "w") as archive:
        for entry, content, compression in entries:
            info = zipfile.ZipInfo(entry, _WRITTEN)
            info.external_attr = 0o644 << 16
            archive.writestr(info, content, compression)
    return stream.getvalue()


def stl_bytes(mesh: TexturedMesh, scale: float = 1.0) -> bytes:
    """Binary STL in the glTF frame; slicers that expect millimetres need the mesh scaled by 1000 on import."""
    corners = (to_gltf_frame(mesh.vertices) * scale).astype("<f4")[mesh.faces]
    a, b, c = np.moveaxis(corners.astype(np.float64), 1, 0)
    normals = np.cross(b - a, c - a)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("unused", "<u2")])
    triangles = np.zeros(len(corners), dtype=record)
    triangles["normal"], triangles["corners"] = normals, corners
    return b"binary STL, metres, y up".ljust(80) + np.uint32(len(corners)).astype("<u4").tobytes() + triangles.tobytes()


def _obj_text(mesh: TexturedMesh, scale: float, name: str) -> str:
    lines = ["# metres, y up", f"mtllib {name}.mtl", f"o {name}"]
    lines += [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in (to_gltf_frame(mesh.vertices) * scale).tolist()]
    lines += [f"vt {u:.7g} {v:.7g}" for u, v in mesh.uvs.tolist()]  # OBJ measures v upwards, as we do
    lines += [f"vn {x:.5g} {y:.5g} {z:.5g}" for x, y, z in to_gltf_frame(mesh.normals).tolist()]
    lines.append("usemtl surface")
    lines += [f"f {a}/{a}/{a} {b}/{b}/{b} {c}/{c}/{c}" for a, b, c in (mesh.faces.astype(np.int64) + 1).tolist()]
    return "\n".join(lines) + "\n"


def _mtl_text(name: str) -> str:
    # Lit, without highlight: the nearest that this old format has to a rough dielectric.
    return f"newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 1\nmap_Kd {name}.png\n"
