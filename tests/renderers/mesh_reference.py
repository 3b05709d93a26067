"""Slow, plain references for the mesh rasteriser, and the shapes that its tests render."""

from __future__ import annotations

import math

import torch


def pixel_centers(height: int, width: int) -> torch.Tensor:
    """(x, y) of every pixel centre, [H, W, 2] float64."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).double()


def screen_barycentrics(corners: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Barycentrics [..., 3] of points [..., 2] in triangles [..., 3, >=2], by the ratio of signed areas."""

    def cross(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]

    a, b, c = (corners[..., i, :2] for i in range(3))
    area = cross(b - a, c - a)
    parts = cross(c - b, points - b), cross(a - c, points - c), cross(b - a, points - a)
    return torch.stack(parts, dim=-1) / area.unsqueeze(-1)


def rasterize(screen: torch.Tensor, faces: torch.Tensor, height: int, width: int):
    """Every face against every pixel: ids [H, W], perspective-correct barycentrics [H, W, 3], depth [H, W]."""
    corners = screen.double()[faces]  # F 3 3
    points = pixel_centers(height, width)[:, :, None]
    flat = screen_barycentrics(corners, points.expand(-1, -1, len(faces), -1))
    inverse = (flat / corners[:, :, 2]).sum(dim=-1)
    nearest, ids = torch.where((flat >= 0).all(dim=-1), inverse, -math.inf).max(dim=-1)
    ids = torch.where(nearest > 0, ids, -1)
    return ids, interpolation_weights(screen, faces, ids), torch.where(ids >= 0, 1 / nearest, 0)


def interpolation_weights(screen: torch.Tensor, faces: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Perspective-correct barycentrics [H, W, 3], differentiable in screen by autograd; 0 where ids is -1."""
    corners = screen.double()[faces[ids.clamp(min=0)]]
    flat = screen_barycentrics(corners, pixel_centers(*ids.shape)) / corners[..., 2]
    weights = flat / flat.sum(dim=-1, keepdim=True)
    return torch.where((ids >= 0).unsqueeze(-1), weights, 0)


def icosphere(subdivisions: int, radius: float = 0.45) -> tuple[torch.Tensor, torch.Tensor]:
    """A closed sphere of 20 * 4^n faces, outward counter-clockwise: vertices [V, 3], faces [F, 3]."""
    golden = (1 + math.sqrt(5)) / 2
    vertices = [(s, t * golden, 0.0) for t in (1, -1) for s in (-1, 1)]
    vertices = vertices + [(0.0, x, y) for x, y, _ in vertices] + [(y, 0.0, x) for x, y, _ in vertices]
    points = torch.nn.functional.normalize(torch.tensor(vertices, dtype=torch.float64), dim=-1)
    near = torch.cdist(points, points) < 1.1
    i, j, k = torch.combinations(torch.arange(12), 3).unbind(dim=1)
    faces = torch.stack([i, j, k], dim=1)[near[i, j] & near[j, k] & near[i, k]]
    a, b, c = points[faces].unbind(dim=1)
    inwards = (torch.linalg.cross(b - a, c - a) * a).sum(dim=-1) < 0
    faces[inwards] = faces[inwards][:, [0, 2, 1]]
    for _ in range(subdivisions):
        ends = faces[:, [[0, 1], [1, 2], [2, 0]]].sort(dim=-1).values.reshape(-1, 2)
        edges, where = ends.unique(dim=0, return_inverse=True)
        middles = where.reshape(-1, 3) + len(points)
        points = torch.cat([points, torch.nn.functional.normalize(points[edges].mean(dim=1), dim=-1)])
        i, j, k, ij, jk, ki = torch.cat([faces, middles], dim=1).unbind(dim=1)
        faces = torch.stack([i, ij, ki, ij, j, jk, ki, jk, k, ij, jk, ki], dim=1).reshape(-1, 3)
    return (radius * points).float(), faces


def triangle_soup(count: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unconnected random triangles that overlap, intersect and leave the image: screen [3 * count, 3], faces."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(count, 1, 2, generator=generator) * torch.tensor([width, height])
    corners = center + torch.randn(count, 3, 2, generator=generator) * 0.2 * min(height, width)
    depth = 1 + 2 * torch.rand(count, 3, 1, generator=generator)
    return torch.cat([corners, depth], dim=-1).reshape(-1, 3), torch.arange(3 * count).reshape(-1, 3)
