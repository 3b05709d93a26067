"""Small meshes with the attributes of a decoded one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
import trimesh

from trellis.export.photographs import Photographs
from trellis.export.surface import Surface
from trellis.renderers import mesh_raster
from trellis.renderers.cameras import orbit

PATCHES = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 40], [17, 34, 51], [128, 128, 128]], dtype=np.uint8
)


def mesh_of(vertices, faces, colors=None) -> SimpleNamespace:
    attributes = (
        None if colors is None else torch.cat([torch.as_tensor(colors).float(), torch.zeros(len(colors), 3)], 1)
    )
    return SimpleNamespace(
        vertices=torch.as_tensor(np.array(vertices)).float(),
        faces=torch.as_tensor(np.array(faces)).long(),
        vertex_attrs=attributes,
    )


def sphere(radius: float = 0.4, subdivisions: int = 4, center=(0, 0, 0), inward: bool = False) -> trimesh.Trimesh:
    ball = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    ball.apply_translation(center)
    if inward:
        ball.invert()
    return ball


def patch_cube(cells: int = 12) -> SimpleNamespace:
    """A cube of side 0.8 whose sides, split along their edges, carry the six colours of `PATCHES`."""
    line = np.linspace(-0.4, 0.4, cells + 1)
    u, v = (grid.ravel() for grid in np.meshgrid(line, line, indexing="ij"))
    w = np.full_like(u, 0.4)
    quad = np.arange(cells * (cells + 1)).reshape(cells, cells + 1)[:, :-1].ravel()
    a, b, c, d = quad, quad + cells + 1, quad + cells + 2, quad + 1
    square = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])  # its normal is u x v = +w
    vertices, faces, colors = [], [], []
    for side, color in enumerate(PATCHES):
        axis, sign = side % 3, 1 - 2 * (side // 3)
        points = np.empty((len(u), 3))
        points[:, axis], points[:, (axis + 1) % 3], points[:, (axis + 2) % 3] = sign * w, u, v
        faces.append((square if sign > 0 else square[:, ::-1]) + side * len(u))
        vertices.append(points)
        colors.append(np.tile(color / 255, (len(u), 1)))
    return mesh_of(np.concatenate(vertices), np.concatenate(faces), np.concatenate(colors))


def sampled_colors(asset: trimesh.Trimesh, points: np.ndarray) -> np.ndarray:
    """What a viewer shows at surface points [N, 3] (glTF frame): bilinear texture lookup, [N, 3] in 0..255."""
    nearest, _, faces = trimesh.proximity.closest_point_naive(asset, points)
    weights = trimesh.triangles.points_to_barycentric(asset.triangles[faces], nearest)
    uvs = np.einsum("nk,nkc->nc", weights, np.asarray(asset.visual.uv)[asset.faces[faces]])
    texture = np.asarray(asset.visual.material.baseColorTexture.convert("RGB"), dtype=np.float64)
    size = np.array(texture.shape[1::-1])
    place = np.stack([uvs[:, 0], 1 - uvs[:, 1]], axis=1) * size - 0.5
    low = np.clip(np.floor(place).astype(int), 0, size - 2)
    share = np.clip(place - low, 0, 1)
    rows = [texture[low[:, 1] + dy, low[:, 0] + dx] for dy in (0, 1) for dx in (0, 1)]
    shares = [(share[:, 0] if dx else 1 - share[:, 0]) * (share[:, 1] if dy else 1 - share[:, 1])
              for dy in (0, 1) for dx in (0, 1)]  # fmt: skip
    return sum(s[:, None] * r for s, r in zip(shares, rows, strict=True))


def pattern(points: np.ndarray) -> np.ndarray:
    """Colours of points in space, in [0, 1]."""
    return 0.5 + 0.3 * np.sin(20 * points + np.array([0, 1, 2]))


def photographs_of_pattern(surface: Surface) -> Photographs:
    """What five cameras in azimuths 0 to 160 degrees see of a surface that wears `pattern`."""
    cameras = orbit(torch.arange(5) * 0.7, torch.zeros(5), 2.0, 40.0, 256)
    vertices, faces = torch.from_numpy(surface.vertices), torch.from_numpy(surface.faces)
    images, alphas = [], []
    for k in range(len(cameras)):
        view = mesh_raster.render_mesh(vertices, faces, vertices, cameras, k, antialiased=False)
        images.append(torch.from_numpy(pattern(view["attributes"].numpy())).float().permute(2, 0, 1))
        alphas.append(view["mask"].permute(2, 0, 1))
    return Photographs(images, cameras, alphas)
