"""Voxels and the targets that supervise the structured-latent decoders."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.objects import Instances
from training.data.surface import SurfaceCache, SurfaceSamples

SAMPLE_RADIUS = 0.004  # a surface sample stands for a disc of this radius
FINE = 4  # occupancy inside a voxel is told on this many cells per side
FEATURES = 12 + 8 * 10 + FINE**3


@dataclass
class VoxelBatch:
    """Active voxels of B instances at `resolution`: coords [N, 4] int32 (batch, x, y, z) in sorted order, the
    encoder's input feats [N, FEATURES], and per voxel `slots` surface samples: points relative to the voxel centre in
    voxels, normals, colours [N, slots, 3]."""

    coords: Tensor
    feats: Tensor
    points: Tensor
    normals: Tensor
    colours: Tensor

    @property
    def looks(self) -> Tensor:
        """Mean normal and mean colour of each voxel, [N, 6]."""
        return self.feats[:, 3:9]

    def latent(self, encoded: Tensor) -> Tensor:
        """What the encoder made of each voxel, with its mean colour appended: [N, C] to [N, C + 3]."""
        return torch.cat([encoded.float(), self.looks[:, 3:]], 1)


def occupancy(points: Tensor, resolution: int) -> Tensor:
    """Dense occupancy [B, 1, R, R, R] float of voxels that hold one of the surface's points [B, P, 3]."""
    count = len(points)
    grid = torch.zeros(count, resolution**3, device=points.device)
    cell = ((points + 0.5) * resolution).long().clamp(0, resolution - 1)
    flat = (cell[..., 0] * resolution + cell[..., 1]) * resolution + cell[..., 2]
    grid.scatter_(1, flat, 1.0)
    return grid.reshape(count, 1, resolution, resolution, resolution)


def voxelise(samples: SurfaceSamples, resolution: int, slots: int = 48) -> VoxelBatch:
    """Group surface samples by voxel; describe each by means of its samples and octants, and by finer occupancy."""
    device, count = samples.points.device, len(samples.points)
    position = (samples.points + 0.5) * resolution
    cell = position.long().clamp(0, resolution - 1)
    batch = torch.arange(count, device=device)[:, None].expand(cell.shape[:2])
    flat = ((batch * resolution + cell[..., 0]) * resolution + cell[..., 1]) * resolution + cell[..., 2]
    voxel, owner, members = torch.unique(flat.reshape(-1), return_inverse=True, return_counts=True)
    n = len(voxel)
    offset = (position - cell - 0.5).reshape(-1, 3)
    normals, colours = samples.normals.reshape(-1, 3), samples.colours.reshape(-1, 3)

    def mean(values: Tensor, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        total = torch.zeros(size, values.shape[1] + 1, device=device)
        total.index_add_(0, index, torch.cat([values, torch.ones_like(values[:, :1])], 1))
        return total[:, :-1] / total[:, -1:].clamp(min=1), total[:, -1] > 0

    average, _ = mean(torch.cat([offset, normals, colours, colours.square()], 1), owner, n)
    spread = (average[:, 9:] - average[:, 6:9].square()).clamp(min=0).sqrt()
    octant = ((offset > 0) * torch.tensor([4, 2, 1], device=device)).sum(1)
    parts, filled = mean(torch.cat([offset, normals, colours], 1), owner * 8 + octant, n * 8)
    octants = torch.cat([parts, filled[:, None].float()], 1).reshape(n, -1)
    sub = ((offset + 0.5) * FINE).long().clamp(0, FINE - 1)
    fine = torch.zeros(n * FINE**3, device=device)
    fine[owner * FINE**3 + (sub[:, 0] * FINE + sub[:, 1]) * FINE + sub[:, 2]] = 1.0
    feats = torch.cat([average[:, :9], spread, octants, fine.reshape(n, -1)], 1)

    order = torch.argsort(owner, stable=True)
    first = torch.cumsum(members, 0) - members
    slot = torch.arange(slots, device=device)[None] % members[:, None]
    pick = order[first[:, None] + slot]
    z, rest = voxel % resolution, voxel // resolution
    coords = torch.stack([rest // resolution**2, rest // resolution % resolution, rest % resolution, z], 1).int()
    return VoxelBatch(coords, feats, offset[pick], normals[pick], colours[pick])


@dataclass
class CornerTargets:
    """Targets at the corners of cubes [M, 4] of the fine grid.

    sdf [M, 8] in units of one cube (positive outside), colours and normals [M, 8, 3], and near [M, 8]: a surface sample
    lies within reach, so colour and normal are known.
    """

    sdf: Tensor
    colours: Tensor
    normals: Tensor
    near: Tensor


# Corner order of the mesh decoder: x fastest.
CORNERS = torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)])


def corner_targets(
    cubes: Tensor, samples: SurfaceSamples, cache: SurfaceCache, instances: Instances, resolution: int,
    reach: int = 2, truncate: float = 2.0, thickness: float = 0.35,
) -> CornerTargets:
    """Signed distance, colour and normal at the 8 corners of every cube (batch, x, y, z).

    Each sample offers itself to the lattice points within `reach` cells; a lattice point keeps the nearest. The
    distance is to that sample's small disc. Inside is what no direction sees; subtracting `thickness` cells gives open
    sheets a body.
    """
    device, count = cubes.device, len(samples.points)
    side = resolution + 1
    corner = cubes[:, None, 1:] + CORNERS.to(device)  # [M, 8, 3]
    flat = ((cubes[:, None, 0] * side + corner[..., 0]) * side + corner[..., 1]) * side + corner[..., 2]
    lattice, back = torch.unique(flat.reshape(-1), return_inverse=True)
    z, rest = lattice % side, lattice // side
    y, rest = rest % side, rest // side
    x, batch = rest % side, rest // side
    position = torch.stack([x, y, z], 1).float()

    lookup = torch.full((count * side**3,), -1, dtype=torch.int32, device=device)
    lookup[lattice] = torch.arange(len(lattice), dtype=torch.int32, device=device)
    grid_points = ((samples.points + 0.5) * resolution).reshape(-1, 3)
    owner = torch.arange(count, device=device).repeat_interleave(samples.points.shape[1])
    sample_index = torch.arange(len(grid_points), device=device)
    # Offers to points that nobody asked for go to a slot per sample: atomics on one shared slot would queue up.
    best = torch.full((len(lattice) + len(grid_points),), torch.iinfo(torch.int64).max, device=device)
    low = grid_points.floor().long()
    for dx in range(1 - reach, reach + 1):
        for dy in range(1 - reach, reach + 1):
            for dz in range(1 - reach, reach + 1):
                node = low + torch.tensor([dx, dy, dz], device=device)
                valid = ((node >= 0) & (node < side)).all(1)
                index = ((owner * side + node[:, 0]) * side + node[:, 1]) * side + node[:, 2]
                entry = lookup[torch.where(valid, index, 0)].long()
                entry = torch.where(valid & (entry >= 0), entry, len(lattice) + sample_index)
                distance = (node.float() - grid_points).norm(dim=1)
                key = (distance.view(torch.int32).long() << 32) | sample_index
                best.scatter_reduce_(0, entry, key, "amin")
    best = best[: len(lattice)]
    near = best != torch.iinfo(torch.int64).max
    nearest = torch.where(near, best & 0xFFFFFFFF, 0)
    delta = position - grid_points[nearest]
    normal = samples.normals.reshape(-1, 3)[nearest]
    height = (delta * normal).sum(1)
    aside = (delta - height[:, None] * normal).norm(dim=1) - SAMPLE_RADIUS * resolution
    distance = torch.sqrt(height.square() + aside.clamp(min=0).square())
    distance = torch.where(near, distance, truncate).clamp(max=truncate)

    # Sign queries in one padded batch: lattice points are sorted by instance.
    per = torch.bincount(batch, minlength=count)
    slot = torch.arange(len(lattice), device=device) - (torch.cumsum(per, 0) - per)[batch]
    queries = torch.zeros(count, int(per.max()), 3, device=device)
    queries[batch, slot] = position / resolution - 0.5
    hidden = cache.inside(instances, queries)[batch, slot]
    sdf = torch.where(hidden, -distance, distance) - thickness
    colours = samples.colours.reshape(-1, 3)[nearest]

    def spread(values: Tensor) -> Tensor:
        return values[back].reshape(len(cubes), 8, *values.shape[1:])

    return CornerTargets(spread(sdf), spread(colours), spread(normal), spread(near))
