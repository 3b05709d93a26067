"""From a textured mesh under an environment to an image in linear light, differentiable in everything.

Shading is Karis's split sum: a diffuse lobe (Lambert) and a GGX lobe whose integral is taken as the product of the
filtered environment and a two-number table of the reflectance. Light that bounces or is blocked is not modelled; what
it leaves ends up in the base colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from nvdiffrec.light import FilteredLight
from nvdiffrec.material import Material, face_mip_levels, mip_pyramid, sample
from trellis.renderers.mesh_raster import antialias, interpolate, project, rasterize

_DIELECTRIC = 0.04  # reflectance at normal incidence of most things that are not metal
_MIN_ROUGHNESS = 0.08
_TABLE_SIZE = 32
_TABLE_SAMPLES = 256


@dataclass(frozen=True, eq=False)
class TexturedGeometry:
    """A mesh whose faces share vertices (so that silhouettes are found), with texture coordinates of its own indexing.

    Attributes:
        vertices: [V, 3] float, object frame; may carry gradients.
        faces: [F, 3] int64.
        uvs: [U, 2] float in [0, 1], origin at the lower left of the texture.
        uv_faces: [F, 3] int64 into `uvs`.
    """

    vertices: Tensor
    faces: Tensor
    uvs: Tensor
    uv_faces: Tensor

    def to(self, device: torch.device | str) -> TexturedGeometry:
        """A copy on another device."""
        return TexturedGeometry(*(t.to(device) for t in (self.vertices, self.faces, self.uvs, self.uv_faces)))

    def with_vertices(self, vertices: Tensor) -> TexturedGeometry:
        return TexturedGeometry(vertices, self.faces, self.uvs, self.uv_faces)


@dataclass(frozen=True, eq=False)
class PreparedMaterial:
    """The mip pyramid of a material's channels; made once per step, shared by the views of the step."""

    pyramid: list[Tensor]
    has_normals: bool

    @classmethod
    def of(cls, material: Material) -> PreparedMaterial:
        return cls(mip_pyramid(material.stack), material.normal is not None)


def render(
    geometry: TexturedGeometry,
    material: PreparedMaterial,
    light: FilteredLight | None,
    extrinsics: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    *,
    turntable: bool = False,
    exposure: Tensor | float = 1.0,
    normals: Tensor | None = None,
) -> Tensor:
    """Render one view; differentiable in vertices, textures, light, camera and exposure.

    Args:
        geometry, material: what is seen.
        light: filtered environment; None renders the base colour as it is.
        extrinsics, intrinsics: [4, 4] and [3, 3] of the camera.
        size: (height, width) in pixels.
        turntable: the light stands still relative to the camera (the object turned under a fixed lamp) instead of
            relative to the object.
        exposure: factor on the light that reaches the sensor.
        normals: [V, 3] unit vertex normals, if they are known already.

    Returns:
        [H, W, 4]: linear light multiplied by coverage, and coverage.
    """
    vertices, faces = geometry.vertices, geometry.faces
    screen = project(vertices, extrinsics, intrinsics)
    raster = rasterize(screen, faces, *size)
    normals = vertex_normals(vertices, faces) if normals is None else normals
    surface = interpolate(torch.cat([vertices, normals], dim=1), screen, faces, raster)
    uv_image = interpolate(geometry.uvs, screen, faces, raster, attribute_faces=geometry.uv_faces)

    seen = raster.mask.view(-1).nonzero().squeeze(1)
    face_ids = raster.face_ids.view(-1)[seen].long()
    levels = face_mip_levels(screen, faces, geometry.uvs, geometry.uv_faces, material.pyramid[0].shape[-1])[face_ids]
    channels = sample(material.pyramid, uv_image.view(-1, 2)[seen], levels)
    base_color = channels[:, :3]
    if light is None:
        color = base_color
    else:
        position, normal = surface.view(-1, 6)[seen].split(3, dim=1)
        normal = normalize(normal, dim=1)
        if material.has_normals:
            normal = _tangent_to_world(channels[:, 5:8], normal, geometry, face_ids)
        rotation = extrinsics[:3, :3]
        center = -rotation.T @ extrinsics[:3, 3]
        view = normalize(center - position, dim=1)
        to_light = light_rotation(rotation) if turntable else None
        color = shade(base_color, channels[:, 3], channels[:, 4], normal, view, light, to_light)
    color = color * exposure
    image = torch.cat([color, color.new_ones(len(color), 1)], dim=1)
    image = image.new_zeros(size[0] * size[1], 4).index_copy(0, seen, image).view(*size, 4)
    return antialias(image, screen, faces, raster)


def shade(
    base_color: Tensor,
    roughness: Tensor,
    metallic: Tensor,
    normal: Tensor,
    view: Tensor,
    light: FilteredLight,
    to_light: Tensor | None = None,
) -> Tensor:
    """Light sent towards the viewer, [P, 3] linear.

    Args:
        base_color: [P, 3]; roughness, metallic: [P]; all in [0, 1].
        normal, view: [P, 3] unit, the latter from the surface to the eye.
        light: filtered environment.
        to_light: [3, 3] rotation from the object frame to the light's, None if they are the same.
    """
    roughness = roughness.clamp(min=_MIN_ROUGHNESS)
    facing = (normal * view).sum(dim=1, keepdim=True)
    reflected = 2 * facing * normal - view
    if to_light is not None:
        normal, reflected = normal @ to_light.T, reflected @ to_light.T
    metallic = metallic[:, None]
    f0 = _DIELECTRIC * (1 - metallic) + base_color * metallic
    scale, bias = reflectance(facing.squeeze(1).clamp(0, 1), roughness).unbind(1)
    specular = (f0 * scale[:, None] + bias[:, None]) * light.reflection(reflected, roughness)
    return base_color * (1 - metallic) * light.irradiance(normal) + specular


def light_rotation(rotation: Tensor) -> Tensor:
    """Object frame to the frame of a light that is fixed to the camera: x right, y away from the viewer, z up."""
    x, y, z = rotation.unbind(0)
    return torch.stack([x, z, -y])


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [V, 3], the area-weighted mean over the faces around a vertex; differentiable."""
    a, b, c = vertices[faces].unbind(1)
    cross = torch.linalg.cross(b - a, c - a)
    sums = torch.zeros_like(vertices)
    for corner in range(3):
        sums = sums.index_add(0, faces[:, corner], cross)
    return normalize(sums, dim=1, eps=1e-20)


def reflectance(facing: Tensor, roughness: Tensor) -> Tensor:
    """Scale and bias of F0 in the integral of the GGX lobe (Karis 2013), [P, 2], from a table; differentiable."""
    table = _reflectance_table(facing.device).to(facing)
    edge = _TABLE_SIZE - 1
    grid = torch.stack([facing * _TABLE_SIZE - 0.5, roughness * _TABLE_SIZE - 0.5], dim=1) * 2 / edge - 1
    return grid_sample(
        table[None], grid.view(1, 1, -1, 2), align_corners=True, padding_mode="border"
    ).view(2, -1).T


@lru_cache(maxsize=4)
def _reflectance_table(device: torch.device) -> Tensor:
    """[2, roughness, n.v]: importance-sampled with the Hammersley points; Smith's G with k = alpha / 2."""
    n = _TABLE_SIZE
    facing = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[None, :, None]
    alpha = (((torch.arange(n, dtype=torch.float64) + 0.5) / n) ** 2)[:, None, None]
    index = torch.arange(_TABLE_SAMPLES)
    first = (index + 0.5) / _TABLE_SAMPLES
    bits = torch.stack([(index >> k) & 1 for k in range(8)]).double()
    second = (bits * 0.5 ** torch.arange(1, 9)[:, None]).sum(0)
    cos_h = torch.sqrt((1 - first) / (1 + (alpha**2 - 1) * first))
    sin_h = torch.sqrt((1 - cos_h**2).clamp(min=0))
    view_x = torch.sqrt(1 - facing**2)
    v_h = (view_x * sin_h * torch.cos(2 * math.pi * second) + facing * cos_h).clamp(min=0)
    n_l = (2 * v_h * cos_h - facing).clamp(min=0)
    k = alpha / 2
    visibility = n_l / (n_l * (1 - k) + k) * facing / (facing * (1 - k) + k)
    weight = visibility * v_h / (cos_h * facing).clamp(min=1e-9)
    fresnel = (1 - v_h) ** 5
    return torch.stack([(weight * (1 - fresnel)).mean(-1), (weight * fresnel).mean(-1)]).float().to(device)


def _tangent_to_world(local: Tensor, normal: Tensor, geometry: TexturedGeometry, face_ids: Tensor) -> Tensor:
    """Tangent-space normals [P, 3] in the object frame. Tangents are those of the face, made orthogonal to `normal`."""
    corners, places = geometry.vertices[geometry.faces[face_ids]], geometry.uvs[geometry.uv_faces[face_ids]]
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    (u1, v1), (u2, v2) = (places[:, 1] - places[:, 0]).unbind(1), (places[:, 2] - places[:, 0]).unbind(1)
    flipped = torch.where(u1 * v2 - u2 * v1 < 0, -1.0, 1.0)[:, None]
    along_u = (edge1 * v2[:, None] - edge2 * v1[:, None]) * flipped
    tangent = normalize(along_u - normal * (along_u * normal).sum(1, keepdim=True), dim=1, eps=1e-12)
    bitangent = torch.linalg.cross(normal, tangent) * flipped
    return normalize(tangent * local[:, :1] + bitangent * local[:, 1:2] + normal * local[:, 2:], dim=1)
