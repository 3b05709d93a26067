"""Differentiable mesh rendering: project, rasterize, interpolate, antialias, and whole images made of the four.

Images here are [H, W, C]. The kernels run on the CPU; tensors on another device are moved there and the results back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from trellis.errors import InputError
from trellis.renderers.cameras import Cameras, orbit
from trellis.renderers.mesh_antialias import antialias
from trellis.renderers.mesh_interpolation import interpolate
from trellis.renderers.mesh_visibility import NEAR, Raster, rasterize

__all__ = [
    "NEAR",
    "Raster",
    "antialias",
    "face_normal_image",
    "interpolate",
    "project",
    "rasterize",
    "render_mesh",
    "warm_up",
]

_SMALLEST_DIVISOR = 1e-6  # keeps x and y finite for vertices in or behind the camera plane, whose faces are not drawn


def project(vertices: torch.Tensor, extrinsics: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """Pixel positions and depths of world points; differentiable in all three.

    Args:
        vertices: [V, 3] in the world.
        extrinsics: [4, 4] world to camera, OpenCV axes.
        intrinsics: [3, 3] in pixels.

    Returns:
        [V, 3] float32: x and y in pixels (pixel (i, j) has its centre at (j + 0.5, i + 0.5)) and the camera's z. For
        z <= 0 the x and y are finite but mean nothing.
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise InputError(f"Vertices must be [V, 3], but came as {list(vertices.shape)}.")
    if extrinsics.shape != (4, 4) or intrinsics.shape != (3, 3):
        shapes = f"{list(extrinsics.shape)} and {list(intrinsics.shape)}"
        raise InputError(f"One camera is needed, extrinsics [4, 4] and intrinsics [3, 3], but came as {shapes}.")
    # Reduced precision would move vertices by whole pixels.
    with torch.autocast(vertices.device.type, enabled=False):
        extrinsics, intrinsics = extrinsics.to(vertices.device).float(), intrinsics.to(vertices.device).float()
        seen = vertices.float() @ extrinsics[:3, :3].T + extrinsics[:3, 3]
        depth = seen[:, 2:]
        focal = torch.stack([intrinsics[0, 0], intrinsics[1, 1]])
        return torch.cat([focal * seen[:, :2] / depth.clamp(min=_SMALLEST_DIVISOR) + intrinsics[:2, 2], depth], dim=1)


def render_mesh(
    vertices: torch.Tensor,
    faces: torch.Tensor,
    attributes: torch.Tensor | None,
    cameras: Cameras,
    index: int = 0,
    antialiased: bool = True,
    normals: bool = False,
) -> dict[str, torch.Tensor]:
    """Render one view of a mesh; differentiable in vertices, attributes and camera.

    Args:
        vertices: [V, 3] float, world. Both sides of a face are seen; faces that reach behind the camera are dropped.
        faces: [F, 3] integer; F may be 0.
        attributes: [V, C] float, or None.
        cameras, index: the view is `cameras[index]`.
        antialiased: blend silhouettes of `mask`, `attributes` and `normals`. Without it, vertices get no gradient
            from the outline.
        normals: also render face normals.

    Returns:
        `mask` [H, W, 1] coverage in [0, 1]; `depth` [H, W, 1] camera z, never blended, 0 where empty; `face_ids`
        [H, W] int32, -1 where empty; with attributes, `attributes` [H, W, C], 0 where empty, and so already
        multiplied by the mask at silhouettes; with normals, `normals` [H, W, 3] as `face_normal_image` gives them.

    Raises:
        InputError: vertices that are not finite, or inputs that do not fit together.
    """
    height, width = cameras.height_width(index)
    extrinsics = cameras.extrinsics[index]
    screen = project(vertices, extrinsics, cameras.intrinsics[index])
    raster = rasterize(screen, faces, height, width)
    channels = screen[:, 2:]
    if attributes is not None:
        if len(attributes) != len(vertices):
            raise InputError(f"Every vertex needs attributes: {len(vertices)} vertices came with {len(attributes)}.")
        channels = torch.cat([channels, attributes.to(channels)], dim=1)
    image = interpolate(channels, screen, faces, raster)
    layers = {"mask": raster.mask.unsqueeze(-1).to(image)}
    if attributes is not None:
        layers["attributes"] = image[..., 1:]
    if normals:
        layers["normals"] = face_normal_image(vertices, faces, extrinsics, raster)
    if antialiased:
        sizes = [layer.shape[-1] for layer in layers.values()]
        blended = antialias(torch.cat(list(layers.values()), dim=-1), screen, faces, raster)
        layers = dict(zip(layers, blended.split(sizes, dim=-1), strict=True))
    return {**layers, "depth": image[..., :1], "face_ids": raster.face_ids}


def face_normal_image(
    vertices: torch.Tensor, faces: torch.Tensor, extrinsics: torch.Tensor, raster: Raster
) -> torch.Tensor:
    """Normals of the visible faces as colours: (1 - n) / 2 with n in OpenCV camera axes, 0.5 where empty.

    Args:
        vertices: [V, 3] world.
        faces: [F, 3] integer, counter-clockwise seen from outside.
        extrinsics: [4, 4] of the view.
        raster: of the same vertices, faces and view.

    Returns:
        [H, W, 3] in [0, 1], differentiable in vertices and extrinsics.
    """
    corners = vertices[faces.long()]
    normals = F.normalize(torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=-1)
    normals = normals @ extrinsics[:3, :3].to(normals).T
    # Row F stands for "nothing seen", so that the lookup also works for a mesh without faces.
    table = torch.cat([normals, normals.new_zeros(1, 3)])
    ids = torch.where(raster.mask, raster.face_ids, len(normals))
    return (1 - table[ids.long()]) / 2


def warm_up() -> None:
    """Compile every kernel by rendering a triangle forwards and backwards (seconds once, then from the disk cache)."""
    vertices = torch.tensor([[-0.5, 0.0, -0.5], [0.5, 0.0, -0.5], [0.0, 0.0, 0.5]], requires_grad=True)
    camera = orbit(torch.zeros(1), torch.zeros(1), size=16)
    view = render_mesh(vertices, torch.tensor([[0, 1, 2]]), vertices.clone(), camera)
    (view["mask"].sum() + view["attributes"].sum()).backward()
