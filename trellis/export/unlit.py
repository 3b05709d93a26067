"""A textured mesh as a camera sees it without any light: the colours of its texture, pixel by pixel."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from trellis.export.gltf import TexturedMesh
from trellis.renderers import mesh_raster
from trellis.renderers.cameras import Cameras


def render_textured(
    asset: TexturedMesh, texture: np.ndarray, cameras: Cameras, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """The mesh under a texture [S, S, 3] uint8: colour [H, W, 3] in [0, 1], 0 where empty, and mask [H, W]."""
    uvs, mask = interpolated(asset, asset.uvs, cameras, index)
    return looked_up(texture, uvs) * mask[..., None], mask


def interpolated(
    asset: TexturedMesh, attributes: np.ndarray, cameras: Cameras, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Attributes [V, C] of the mesh's vertices in every pixel, [H, W, C] and 0 where empty, and mask [H, W]."""
    height, width = cameras.height_width(index)
    faces = torch.from_numpy(asset.faces)
    with torch.no_grad():
        vertices = torch.from_numpy(asset.vertices)
        screen = mesh_raster.project(vertices, cameras.extrinsics[index], cameras.intrinsics[index])
        raster = mesh_raster.rasterize(screen, faces, height, width)
        values = mesh_raster.interpolate(torch.from_numpy(attributes), screen, faces, raster).numpy()
    return values, (raster.face_ids.numpy() >= 0).astype(np.float32)


def looked_up(texture: np.ndarray, uvs: np.ndarray) -> np.ndarray:
    """The colours in [0, 1] of a texture [S, S, 3] uint8 at places [H, W, 2], bilinear."""
    size = len(texture)
    # Texel (row, column) has its centre at u = (column + 0.5) / size, v = 1 - (row + 0.5) / size.
    at = [(1 - uvs[..., 1]) * size - 0.5, uvs[..., 0] * size - 0.5]
    color = np.stack(
        [ndimage.map_coordinates(texture[..., k].astype(np.float32), at, order=1, mode="nearest") for k in range(3)], -1
    )
    return color / 255
