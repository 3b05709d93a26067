"""A made-up decoder result: a bumpy, painted torus with the inner wall and specks that real decodes have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from skimage.measure import marching_cubes

from trellis.representations.gaussian import SH_DC, Gaussian

BAND = 0.03  # half thickness of the sparse shell in object units


@dataclass
class DecodedMesh:
    """What export reads of a decoded mesh."""

    vertices: torch.Tensor  # [V, 3] float32
    faces: torch.Tensor  # [F, 3] int64
    vertex_attrs: torch.Tensor | None  # [V, 3] sRGB in [0, 1]


def torus_distance(points: np.ndarray) -> np.ndarray:
    """Approximate signed distance [...] of a bumpy torus leaning by 30 degrees, negative inside."""
    x, y, z = np.moveaxis(points, -1, 0)
    y, z = 0.866 * y - 0.5 * z, 0.5 * y + 0.866 * z
    ring = np.hypot(x, y) - 0.3
    angle, around = np.arctan2(y, x), np.arctan2(z, ring)
    return np.hypot(ring, z) - 0.13 - 0.012 * np.sin(9 * angle) * np.sin(4 * around)


def torus_paint(points: np.ndarray) -> np.ndarray:
    """sRGB [N, 3]: coarse hue by place, stripes and a sharp checker that shows how much detail a texture keeps."""
    hue = 0.5 + 0.45 * np.sin(np.stack([5 * points[:, 0], 6 * points[:, 1] + 2, 7 * points[:, 2] + 4], axis=1))
    checker = (np.floor(points * 12).sum(axis=1) % 2)[:, None]
    return (hue * (0.55 + 0.45 * checker)).clip(0, 1).astype(np.float32)


def decoded_torus(resolution: int = 160, num_gaussians: int = 60_000, seed: int = 0) -> tuple[DecodedMesh, Gaussian]:
    """Mesh on a grid of `resolution` cells and splats on its outer surface (160 gives about 200k faces)."""
    axis = np.linspace(-0.5, 0.5, resolution + 1)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    field = torus_distance(grid)
    speck = np.linalg.norm(grid - [0.4, 0.4, 0.42], axis=-1) - 1.2 / resolution
    # Outside the sparse shell every corner counts as empty, which makes the second, inner wall.
    field = np.minimum(np.where(np.abs(field) < BAND, field, 1.0), speck)
    vertices, faces, _, _ = marching_cubes(field, 0.0, spacing=(1 / resolution,) * 3)
    vertices = (vertices - 0.5).astype(np.float32)
    corners = vertices[faces]
    volume = np.einsum("fk,fk->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    faces = faces if volume > 0 else faces[:, ::-1]
    mesh = DecodedMesh(
        torch.from_numpy(vertices),
        torch.from_numpy(np.ascontiguousarray(faces, dtype=np.int64)),
        torch.from_numpy(torus_paint(vertices)),
    )
    outer = np.flatnonzero(np.abs(torus_distance(corners.mean(axis=1))) < 0.5 / resolution)
    return mesh, _splats_on(corners[outer], num_gaussians, np.random.default_rng(seed))


def _splats_on(corners: np.ndarray, count: int, rng: np.random.Generator) -> Gaussian:
    """Flat round splats spread over triangles [F, 3, 3], coloured by the paint."""
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = np.linalg.norm(normals, axis=1) / 2
    chosen = rng.choice(len(corners), count, p=areas / areas.sum())
    weights = rng.dirichlet([1, 1, 1], count)
    points = np.einsum("nk,nkc->nc", weights, corners[chosen]).astype(np.float32)
    normal = normals[chosen] / np.maximum(np.linalg.norm(normals[chosen], axis=1, keepdims=True), 1e-12)
    # The rotation taking z to the normal, as a quaternion: (1 + z.n, z x n), normalised by its user.
    quats = np.stack([1 + normal[:, 2] + 1e-6, -normal[:, 1], normal[:, 0], np.zeros(count)], axis=1)
    spacing = np.sqrt(areas.sum() / count)
    gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1], mininum_kernel_size=0.0, scaling_activation="exp")
    gaussian.from_xyz(torch.from_numpy(points))
    gaussian.from_features(((torch.from_numpy(torus_paint(points)) - 0.5) / SH_DC)[:, None])
    gaussian.from_scaling(torch.tensor([0.7, 0.7, 0.1]).repeat(count, 1) * float(spacing))
    gaussian.from_rotation(torch.nn.functional.normalize(torch.from_numpy(quats).float()))
    gaussian.from_opacity(torch.full((count, 1), 0.95))
    return gaussian
