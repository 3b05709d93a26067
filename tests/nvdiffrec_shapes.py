"""Small textured meshes and views of them, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import Tensor

from nvdiffrec.asset import Asset, plain_material
from nvdiffrec.light import FilteredLight, filter_light
from nvdiffrec.material import Material
from nvdiffrec.result import pbr_mesh
from nvdiffrec.shading import PreparedMaterial, TexturedGeometry, render
from nvdiffrec.views import Views, linear_to_srgb
from trellis.export.gltf import write_glb
from trellis.renderers.cameras import Cameras, orbit


def bumpy_ball(subdivisions: int = 3, bumps: float = 0.08) -> TexturedGeometry:
    """A lopsided ball with one texture coordinate per vertex: longitude and latitude, folded so that nothing wraps."""
    ball = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.35)
    points = np.asarray(ball.vertices, dtype=np.float64)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    points = points * (1 + bumps * np.sin(5 * unit[:, :1] + 1) * np.cos(4 * unit[:, 1:2]) + 0.15 * unit[:, 2:])
    points[:, 0] *= 1.2
    uvs = torch.from_numpy(0.5 + 0.45 * unit[:, [0, 2]]).float()
    faces = torch.from_numpy(np.asarray(ball.faces)).long()
    return TexturedGeometry(torch.from_numpy(points).float(), faces, uvs, faces.clone())


def patterned_material(size: int = 32, frequency: float = 12.0) -> Material:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    waves = 0.5 + 0.4 * torch.sin(frequency * rows), 0.5 + 0.4 * torch.cos(0.75 * frequency * columns)
    color = torch.stack([*waves, rows * 0.6 + 0.2])
    return Material(color, torch.stack([torch.full_like(rows, 0.5), torch.full_like(rows, 0.1)]))


def sky() -> Tensor:
    """Environment [3, 16, 32]: bright from above and from one side."""
    environment = torch.full((3, 16, 32), 0.5)
    environment[:, :5] = 1.2
    environment[0, 3:9, 4:9] = 3.0
    return environment


def ring(count: int, size: int = 64) -> Cameras:
    angle = torch.arange(count) * (2 * torch.pi / count)
    return orbit(angle, 0.3 * torch.cos(3 * angle) + 0.2, radius=2.0, size=size)


def photographs(geometry: TexturedGeometry, material: Material, light: FilteredLight | None, cameras: Cameras) -> Views:
    """What cameras see of it; without a light, its base colours."""
    prepared = PreparedMaterial.of(material)
    images, masks = [], []
    for index in range(len(cameras)):
        size = cameras.height_width(index)
        picture = render(geometry, prepared, light, cameras.extrinsics[index], cameras.intrinsics[index], size)
        coverage = picture[..., 3:].clamp(0, 1)
        color = linear_to_srgb(picture[..., :3] / coverage.clamp(min=1e-4)).clamp(0, 1) * (coverage > 0)
        images.append(color.permute(2, 0, 1).contiguous())
        masks.append(coverage.permute(2, 0, 1).contiguous())
    return Views(cameras, images, masks, [f"view {i}" for i in range(len(cameras))])


def ball_views(count: int = 8, size: int = 64) -> Views:
    return photographs(bumpy_ball(), patterned_material(), filter_light(sky()), ring(count, size))


def write_scene(folder: Path) -> Path:
    """A refinement's input: photographs of the bumpy ball with their cameras, asset.glb, which is plain and grey, and
    right/, where nothing is left to improve."""
    plain = Asset(bumpy_ball(3, bumps=0.0), plain_material(torch.full((3, 32, 32), 0.5)))
    write_glb(folder / "asset.glb", pbr_mesh(plain))
    ball_views(6).save(folder)
    write_glb(folder / "right" / "asset.glb", pbr_mesh(Asset(bumpy_ball(3), patterned_material())))
    photographs(bumpy_ball(3), patterned_material(), None, ring(6)).save(folder / "right")
    return folder
