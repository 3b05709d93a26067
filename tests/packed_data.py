"""Small packs of training objects for tests."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from safetensors.torch import save_file

from training.data.packed import PackedMesh, pack


def encoded(image: Image.Image) -> bytes:
    """PNG bytes of a texture."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_pack(path: Path, meshes: list[PackedMesh]) -> Path:
    """Pack meshes into a file that `ObjectLibrary` reads."""
    tensors, metadata = pack(meshes)
    save_file(tensors, path, metadata)
    return path
