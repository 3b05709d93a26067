"""Ground truth for the refinement benchmark: objects photographed by another path than the one that is fitted.

Pictures are shaded at four times the pixels with exact texture lookups, a diffuse term summed over every texel of a
real HDR environment and a Blinn-Phong highlight per texel, then averaged by area.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, normalize

from nvdiffrec.asset import Asset, asset_of
from nvdiffrec.hdr import read_hdr
from nvdiffrec.light import environment_from_hdr, solid_angles, texel_directions
from nvdiffrec.shading import vertex_normals
from nvdiffrec.views import Views, linear_to_srgb, srgb_to_linear
from trellis.export.frame import from_gltf_frame
from trellis.export.gltf import TexturedMesh
from trellis.renderers import mesh_raster
from trellis.renderers.cameras import Cameras

_OVERSAMPLING = 2
_SPECULAR, _SHININESS = 0.15, 30.0
_BLOCK = 32_768  # pixels that are lit at a time: each meets every texel of the environment


def load_object(file: Path, texture_size: int = 512) -> tuple[Asset, Tensor]:
    """The true asset (base colour, unlit) and its texture [3, S, S] linear. Long faces are split."""
    mesh = trimesh.load(file, force="mesh", process=False)
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
    vertices, uvs = from_gltf_frame(np.asarray(mesh.vertices, np.float32)), np.asarray(mesh.visual.uv)
    both = np.concatenate([vertices, uvs], axis=1)
    both, faces = _densify(both, np.asarray(mesh.faces), 0.06)
    asset = asset_of(TexturedMesh(both[:, :3].astype(np.float32), faces, both[:, 3:].astype(np.float32),
                                  both[:, :3], texture), texture_size)  # fmt: skip
    return asset, srgb_to_linear(torch.from_numpy(texture.astype(np.float32) / 255).permute(2, 0, 1))


def photograph(
    asset: Asset, texture: Tensor, environment_file: Path, cameras: Cameras, device: str = "cpu"
) -> Views:
    """What the cameras see under an environment, of mean radiance about 0.6, so that little is clipped. The pictures
    are made on `device` and returned on the CPU."""
    environment = environment_from_hdr(read_hdr(environment_file), (32, 64))
    angles, directions = solid_angles(32, 64), texel_directions(32, 64)
    radiance = (environment.reshape(3, -1) * angles).clamp(max=2.0)
    radiance = radiance / radiance.sum(1).mean() * 0.6 * 4 * np.pi
    asset, texture, radiance, directions = (part.to(device) for part in (asset, texture, radiance, directions))
    images, masks = [], []
    for index in range(len(cameras)):
        height, width = cameras.height_width(index)
        big = cameras[index].scaled(height * _OVERSAMPLING, width * _OVERSAMPLING).to(device)
        image = _shade(asset, texture, radiance, directions, big)
        small = interpolate(image.permute(2, 0, 1)[None], (height, width), mode="area")[0].cpu()
        coverage = small[3:].clamp(0, 1)
        images.append(linear_to_srgb(small[:3] / coverage.clamp(min=1e-4)).clamp(0, 1) * (coverage > 0))
        masks.append(coverage)
    return Views(cameras, images, masks, [f"view {i}" for i in range(len(cameras))])


def _shade(asset: Asset, texture: Tensor, radiance: Tensor, directions: Tensor, camera: Cameras) -> Tensor:
    geometry = asset.geometry
    screen = mesh_raster.project(geometry.vertices, camera.extrinsics[0], camera.intrinsics[0])
    raster = mesh_raster.rasterize(screen, geometry.faces, *camera.height_width(0))
    normals = vertex_normals(geometry.vertices, geometry.faces)
    surface = mesh_raster.interpolate(torch.cat([geometry.vertices, normals], 1), screen, geometry.faces, raster)
    uvs = mesh_raster.interpolate(geometry.uvs, screen, geometry.faces, raster, attribute_faces=geometry.uv_faces)
    seen = raster.mask.view(-1).nonzero().squeeze(1)
    position, normal = surface.view(-1, 6)[seen].split(3, dim=1)
    normal = normalize(normal, dim=1)
    view = normalize(camera.centers[0] - position, dim=1)
    u, v = uvs.view(-1, 2)[seen].unbind(1)
    grid = torch.stack([2 * u - 1, 1 - 2 * v], dim=1).view(1, 1, -1, 2)
    base = grid_sample(texture[None], grid, align_corners=False, padding_mode="border").view(3, -1).T
    reflected = 2 * (normal * view).sum(1, keepdim=True) * normal - view
    blocks = zip(base.split(_BLOCK), normal.split(_BLOCK), reflected.split(_BLOCK), strict=True)
    color = torch.cat([_lit(*block, radiance, directions) for block in blocks])
    image = color.new_zeros(raster.mask.numel(), 4)
    image[seen] = torch.cat([color, color.new_ones(len(color), 1)], dim=1)
    return image.view(*raster.mask.shape, 4)


def _lit(base: Tensor, normal: Tensor, reflected: Tensor, radiance: Tensor, directions: Tensor) -> Tensor:
    """Light [P, 3] from points of a base colour, by every texel of the environment."""
    diffuse = (normal @ directions.T).clamp(min=0) @ radiance.T / np.pi
    lobe = (reflected @ directions.T).clamp(min=0) ** _SHININESS
    return base * diffuse + _SPECULAR * 0.2 * (lobe @ radiance.T * ((_SHININESS + 1) / (2 * np.pi)))


def _densify(vertices: np.ndarray, faces: np.ndarray, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Split every face at its edges' midpoints until none is longer than asked, with all its columns."""
    for _ in range(5):
        a, b, c = (vertices[faces[:, k], :3] for k in range(3))
        sides = np.stack([np.linalg.norm(x - y, axis=1) for x, y in ((a, b), (b, c), (c, a))])
        if sides.max() <= longest or len(faces) > 15_000:
            break
        edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        unique, place = np.unique(edges, axis=0, return_inverse=True)
        middle = (len(vertices) + place).reshape(-1, 3)
        vertices = np.concatenate([vertices, vertices[unique].mean(axis=1)])
        i, j, k = faces.T
        ij, jk, ki = middle.T
        faces = np.concatenate([np.stack(t, axis=1) for t in ((i, ij, ki), (ij, j, jk), (ki, jk, k), (ij, jk, ki))])
    return vertices, faces
