"""The asset that is refined: a mesh with textures, from and to the forms that other rooms use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvdiffrec.material import COARSEST, Material
from nvdiffrec.shading import TexturedGeometry
from nvdiffrec.views import Views, srgb_to_linear
from trellis.errors import InputError
from trellis.export.bake import bake_views
from trellis.export.simplify import simplify
from trellis.export.surface import Surface, surface_of
from trellis.export.texels import paint, texels_of
from trellis.export.topology import position_ids
from trellis.export.unwrap import Atlas, unwrap
from trellis.export.views import View

START_ROUGHNESS, START_METALLIC = 0.7, 0.0


@dataclass(frozen=True, eq=False)
class Asset:
    """geometry and material as the renderer takes them; environment [3, H, 2H] linear, or None for an asset whose base
    colour is shown as it is (light baked in)."""

    geometry: TexturedGeometry
    material: Material
    environment: Tensor | None = None

    def to(self, device: torch.device | str) -> Asset:
        """A copy on another device."""
        environment = None if self.environment is None else self.environment.to(device)
        return Asset(self.geometry.to(device), self.material.to(device), environment)

    def with_vertices(self, vertices: Tensor) -> Asset:
        return replace(self, geometry=self.geometry.with_vertices(vertices))

    @property
    def surface(self) -> Surface:
        """Vertices and faces alone."""
        geometry = self.geometry
        return Surface(geometry.vertices.detach().cpu().numpy(), geometry.faces.cpu().numpy().astype(np.int32))

    @property
    def atlas(self) -> Atlas:
        """One vertex per pair of position and texture coordinate, as files want them."""
        geometry = self.geometry.to("cpu")
        corners = torch.stack([geometry.faces.reshape(-1), geometry.uv_faces.reshape(-1)], dim=1)
        pairs, place = torch.unique(corners, dim=0, return_inverse=True)
        vertices = geometry.vertices.detach()[pairs[:, 0]].numpy()
        normals = self.surface.vertex_normals()[pairs[:, 0].numpy()]
        faces = place.view(-1, 3).numpy().astype(np.int32)
        return Atlas(vertices, faces, geometry.uvs[pairs[:, 1]].numpy(), normals)


def asset_of(mesh: Any, texture_size: int = 512) -> Asset:
    """An asset from a `TexturedMesh` of `trellis.export` (object frame); its texture is resampled to `texture_size`."""
    check_texture_size(texture_size)
    vertices = np.asarray(mesh.vertices, np.float32)
    if not np.isfinite(vertices).all():
        raise InputError("The mesh has vertices that are not finite.")
    geometry = welded(vertices, np.asarray(mesh.faces), np.asarray(mesh.uvs, np.float32))
    texture = torch.from_numpy(np.asarray(mesh.texture)[..., :3].astype(np.float32) / 255).permute(2, 0, 1)
    color = srgb_to_linear(torch.nn.functional.interpolate(
        texture[None], (texture_size, texture_size), mode="bilinear", align_corners=False, antialias=True
    )[0].clamp(0, 1))  # fmt: skip
    return Asset(geometry, plain_material(color))


def asset_from_views(mesh: Any, views: Views, texture_size: int = 512, max_faces: int = 8000) -> Asset:
    """Unwrap a bare mesh (`vertices`, `faces`) and paint it from the photographs."""
    check_texture_size(texture_size)
    low = simplify(surface_of(mesh), 0.0, max_faces)
    atlas = unwrap(low, texture_size)
    texels = texels_of(atlas, texture_size)
    pictures = (View(image.permute(1, 2, 0), mask[0]) for image, mask in zip(views.images, views.masks, strict=True))
    colors, _ = bake_views(atlas, texels, views.cameras, pictures)
    color = srgb_to_linear(torch.from_numpy(paint(texels, colors)).permute(2, 0, 1).contiguous())
    return Asset(welded(atlas.vertices, atlas.faces, atlas.uvs), plain_material(color))


def plain_material(color: Tensor) -> Material:
    """A rough dielectric of base colour [3, S, S] (linear)."""
    size = color.shape[-1]
    orm = torch.stack([torch.full((size, size), START_ROUGHNESS), torch.full((size, size), START_METALLIC)])
    return Material(color, orm)


def check_texture_size(size: int) -> None:
    """Raise unless mip levels can be made of it: 16 to 31 times a power of two."""
    side = size
    while side >= 2 * COARSEST and side % 2 == 0:
        side //= 2
    if not COARSEST <= side < 2 * COARSEST:
        raise InputError(f"The texture size must be a power of two, or a multiple of 256, from {COARSEST}, not {size}.")


def welded(vertices: np.ndarray, faces: np.ndarray, uvs: np.ndarray) -> TexturedGeometry:
    """Share vertices at the same place but keep texture coordinates apart; faces that collapse are dropped."""
    ids = position_ids(vertices)
    _, first, place = np.unique(ids, return_index=True, return_inverse=True)
    joined = place[faces]
    distinct = (joined[:, 0] != joined[:, 1]) & (joined[:, 1] != joined[:, 2]) & (joined[:, 2] != joined[:, 0])
    return TexturedGeometry(
        torch.from_numpy(np.ascontiguousarray(vertices[first])),
        torch.from_numpy(np.ascontiguousarray(joined[distinct])).long(),
        torch.from_numpy(np.ascontiguousarray(uvs)).float(),
        torch.from_numpy(np.ascontiguousarray(faces[distinct])).long(),
    )
