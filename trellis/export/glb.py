"""Binary glTF 2.0 of one textured mesh (https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html)."""

from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from trellis.errors import InputError
from trellis.export.frame import to_gltf_frame
from trellis.export.surface import unit

if TYPE_CHECKING:
    from trellis.export.gltf import TexturedMesh

IMAGE_FORMATS = ("png", "webp")

_FLOAT, _UNSIGNED_SHORT, _UNSIGNED_INT = 5126, 5123, 5125
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071


def glb_bytes(mesh: TexturedMesh, scale: float = 1.0, image_format: str = "png") -> bytes:
    """One node, one mesh, one opaque rough dielectric material with an sRGB base-colour texture.

    Args:
        mesh: in the object frame.
        scale: metres per object unit.
        image_format: "png", or "webp": lossless and about a quarter smaller, but older viewers cannot open it (the
            file then requires the extension EXT_texture_webp).

    Raises:
        InputError: another image format.
    """
    if image_format not in IMAGE_FORMATS:
        raise InputError(f"The texture of a GLB is stored as one of {IMAGE_FORMATS}, not {image_format!r}.")
    file = _Buffer()
    normals = unit(to_gltf_frame(mesh.normals).astype(np.float64))
    attributes = {
        "POSITION": file.add_accessor(to_gltf_frame(mesh.vertices) * scale, "VEC3", bounds=True),
        "NORMAL": file.add_accessor(normals, "VEC3"),
        # glTF measures v downwards from the top of the image.
        "TEXCOORD_0": file.add_accessor(np.stack([mesh.uvs[:, 0], 1 - mesh.uvs[:, 1]], axis=1), "VEC2"),
    }
    indices = file.add_indices(mesh.faces, len(mesh.vertices))
    image = file.add_view(encode_image(mesh.texture, image_format))
    texture: dict[str, Any] = {"sampler": 0, "source": 0}
    extensions: dict[str, Any] = {}
    if image_format == "webp":
        texture = {"sampler": 0, "extensions": {"EXT_texture_webp": {"source": 0}}}
        extensions = {"extensionsUsed": ["EXT_texture_webp"], "extensionsRequired": ["EXT_texture_webp"]}
    document = {
        "asset": {"version": "2.0", "generator": "trellis.export"},
        **extensions,
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"name": "object", "primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
        "materials": [
            {
                "name": "surface",
                "pbrMetallicRoughness": {
                    "baseColorTexture": {"index": 0},
                    "metallicFactor": 0.0,
                    "roughnessFactor": 1.0,
                },
                "alphaMode": "OPAQUE",
                "doubleSided": False,
            }
        ],
        "textures": [texture],
        "images": [{"bufferView": image, "mimeType": f"image/{image_format}", "name": "base_color"}],
        "samplers": [
            {
                "magFilter": _LINEAR,
                "minFilter": _LINEAR_MIPMAP_LINEAR,
                "wrapS": _CLAMP_TO_EDGE,
                "wrapT": _CLAMP_TO_EDGE,
            }
        ],
        "accessors": file.accessors,
        "bufferViews": file.views,
        "buffers": [{"byteLength": len(file.data)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(file.data), b"BIN\0") + bytes(file.data)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def encode_image(texture: np.ndarray, image_format: str = "png") -> bytes:
    """[H, W, 3] uint8 as a lossless image file without colour profile, which readers take for sRGB."""
    stream = io.BytesIO()
    settings = {"lossless": True, "method": 3} if image_format == "webp" else {"compress_level": 4}
    Image.fromarray(texture).save(stream, image_format.upper(), **settings)
    return stream.getvalue()


class _Buffer:
    """The binary chunk, with the views and accessors into it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []

    def add_view(self, content: bytes, target: int | None = None) -> int:
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content)}
        self.views.append(view if target is None else {**view, "target": target})
        self.data += content + b"\0" * (-len(content) % 4)
        return len(self.views) - 1

    def add_accessor(self, values: np.ndarray, kind: str, bounds: bool = False) -> int:
        values = np.ascontiguousarray(values, dtype="<f4")
        accessor = {
            "bufferView": self.add_view(values.tobytes(), _ARRAY_BUFFER),
            "componentType": _FLOAT,
            "count": len(values),
            "type": kind,
        }
        if bounds:
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add_indices(self, faces: np.ndarray, num_vertices: int) -> int:
        # The highest number of a type means "restart the strip" and may not be used.
        small = num_vertices < 2**16
        content = np.ascontiguousarray(faces, dtype="<u2" if small else "<u4").tobytes()
        self.accessors.append(
            {
                "bufferView": self.add_view(content, _ELEMENT_ARRAY_BUFFER),
                "componentType": _UNSIGNED_SHORT if small else _UNSIGNED_INT,
                "count": 3 * len(faces),
                "type": "SCALAR",
            }
        )
        return len(self.accessors) - 1
