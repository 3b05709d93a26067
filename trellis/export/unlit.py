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
    """The unlit mesh under a texture [S, S, 3] uint8: colour [H, W, 3] in [0, 1], 0 where empty, and mask [H, W]."""
    height, width = cameras.height_width(index)
    faces = torch.from_numpy(asset.faces)
    with torch.no_grad():
        vertices = torch.from_numpy(asset.vertices)
        screen = mesh_raster.project(vertices, cameras.extrinsics[index], cameras.intrinsics[index])
        raster = mesh_raster.rasterize(screen, faces, height, width)
        uvs = mesh_raster.interpolate(torch.from_numpy(asset.uvs), screen, faces, raster).numpy()
    mask = raster.face_ids.numpy() >= 0
    size = len(texture)
    # Texel (row, column) has its centre at u = (column + 0.5) / size, v = 1 - (row + 0.5) / size.
    at = [(1 - uvs[..., 1]) * size - 0.5, uvs[..., 0] * size - 0.5]
    color = np.stack(
        [ndimage.map_coordinates(texture[..., k].astype(np.float32), at, order=1, mode="nearest") for k in range(3)], -1
    )
    return color / 255 * mask[..., None], mask.astype(np.float32)
