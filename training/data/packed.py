"""The packed file: many textured meshes as flat tensors with offsets, loaded in seconds."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

TEXTURE_SIDE = 256  # views are 168 px, so nothing finer is ever seen
RECODE_ABOVE_BYTES = 24_000


@dataclass(frozen=True)
class PackedMesh:
    """One textured mesh in the object frame; `texture` holds encoded PNG or JPEG bytes, `uvs` have v pointing up."""

    name: str
    vertices: np.ndarray  # [V, 3] float
    uvs: np.ndarray  # [V, 2] float in [0, 1]
    faces: np.ndarray  # [F, 3] int
    texture: bytes
    smooth: bool


def encode_texture(image: Image.Image, side: int = TEXTURE_SIDE) -> bytes:
    """Encode a texture as PNG when that is small (palettes), else as JPEG with sides of at most `side`."""
    image = image.convert("RGB")
    png = io.BytesIO()
    image.save(png, "PNG", optimize=True)
    if png.tell() <= RECODE_ABOVE_BYTES:
        return png.getvalue()
    image.thumbnail((side, side), Image.Resampling.BOX)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()


def pack(meshes: list[PackedMesh]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Concatenate meshes into flat tensors with offsets, and the JSON metadata that names them."""

    def offsets(counts: list[int]) -> torch.Tensor:
        return torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64)

    tensors = {
        "vertices": torch.from_numpy(np.concatenate([m.vertices for m in meshes])).half(),
        "uvs": torch.from_numpy(np.round(np.concatenate([m.uvs for m in meshes]) * 65535).astype(np.uint16)),
        "faces": torch.from_numpy(np.concatenate([m.faces for m in meshes]).astype(np.uint16)),
        "smooth": torch.tensor([m.smooth for m in meshes]),
        "textures": torch.from_numpy(np.frombuffer(b"".join(m.texture for m in meshes), dtype=np.uint8).copy()),
        "vertex_offsets": offsets([len(m.vertices) for m in meshes]),
        "face_offsets": offsets([len(m.faces) for m in meshes]),
        "texture_offsets": offsets([len(m.texture) for m in meshes]),
    }
    return tensors, {"names": json.dumps([m.name for m in meshes])}


def unpack(path: Path) -> list[PackedMesh]:
    """The meshes of a packed file."""
    with safe_open(path, framework="np") as file:
        data = {key: file.get_tensor(key) for key in file.keys()}
        names = json.loads(file.metadata()["names"])

    def pieces(values: str, offsets: str) -> list[np.ndarray]:
        return np.split(data[values], data[offsets][1:-1])

    vertices, uvs = pieces("vertices", "vertex_offsets"), pieces("uvs", "vertex_offsets")
    faces, textures = pieces("faces", "face_offsets"), pieces("textures", "texture_offsets")
    return [
        PackedMesh(name, v.astype(np.float64), uv / 65535, f, t.tobytes(), bool(smooth))
        for name, v, uv, f, t, smooth in zip(names, vertices, uvs, faces, textures, data["smooth"], strict=True)
    ]
