"""Voxels and the targets that supervise the structured-latent decoders."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.objects import Instances
from training.data.surface import SurfaceCache, SurfaceSamples

SAMPLE_RADIUS = 0.004  # a surface sample stands for a disc of this radius
FINE = 4  # occupancy inside a voxel is told on this many cells per side
INSIDE_WEIGHT = 3.0  # at most, of corners inside of thin parts
FEATURES = 12 + 8 * 10 + FINE**3


@dataclass
class VoxelBatch:
    """Active voxels of B instances at `resolution`: coords [N, 4] int32 (batch, x, y, z) in sorted order, whether each
    is `filled` [N], that is holds a part of the surface, the encoder's input feats [N, FEATURES], and per voxel `slots`
    surface samples: points relative to the voxel centre in voxels, normals, colours [N, slots, 3], of no meaning where
    nothing fills it."""

    coords: Tensor
    filled: Tensor
    feats: Tensor
    points: Tensor
    normals: Tensor
    colours: Tensor

    @property
    def looks(self) -> Tensor:
        """Mean normal and mean colour of each voxel, or of what is nearest to an empty one, [N, 6]."""
        return self.feats[:, 3:9]

    def at(self, rows: Tensor) -> VoxelBatch:
        """Only these voxels [M]; the number of instances is left as it is."""
        return VoxelBatch(*(getattr(self, field.name)[rows] for field in fields(self)))

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


def above(values: Tensor, threshold: Tensor | float) -> Tensor:
    """Voxels [B, 1, R, R, R] whose value is greater than the threshold, and the greatest of each instance anyway."""
    return (values > threshold) | (values == values.amax((1, 2, 3, 4), keepdim=True))


def rough_support(grid: Tensor, generator: torch.Generator) -> Tensor:
    """Occupancy [B, 1, R, R, R] as a structure that was guessed might have it, bool: patches of the surface are two or
    three voxels thick and others are missing, in every object to another degree.

    Of a sphere nine of ten voxels stay and three quarters as many are added. The sampled structures of held-out
    objects have five of six and seven tenths (training/LOG.md, run 9).
    """
    count, side = len(grid), max(2, grid.shape[-1] // 4)
    shape = count, 1, side, side, side
    noise = torch.randn(shape, generator=generator, device=grid.device) / 0.54  # what interpolating leaves of it
    noise = F.interpolate(noise, grid.shape[2:], mode="trilinear")
    share = 0.6 * torch.rand(count, 1, 1, 1, 1, generator=generator, device=grid.device)
    return above((grid + F.max_pool3d(grid, 3, 1, 1)) / 2 + share * noise, 0.64)


def voxelise(
    samples: SurfaceSamples, resolution: int, slots: int = 48, support: Tensor | None = None
) -> VoxelBatch:
    """Group surface samples by voxel; describe each by means of its samples and octants, and by finer occupancy.

    `support` [B, 1, R, R, R] bool: the active voxels, at least one of each instance; by default those that hold
    samples. Samples elsewhere count for nothing. An empty voxel is described by the offset, normal and colour of the
    nearest samples alone.
    """
    device, count = samples.points.device, len(samples.points)
    position = (samples.points + 0.5) * resolution
    cell = position.long().clamp(0, resolution - 1)
    batch = torch.arange(count, device=device)[:, None].expand(cell.shape[:2])
    flat = (((batch * resolution + cell[..., 0]) * resolution + cell[..., 1]) * resolution + cell[..., 2]).flatten()
    offset = (position - cell - 0.5).reshape(-1, 3)
    normals, colours = samples.normals.reshape(-1, 3), samples.colours.reshape(-1, 3)

    def mean(values: Tensor, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        total = torch.zeros(size, values.shape[1] + 1, device=device)
        total.index_add_(0, index, torch.cat([values, torch.ones_like(values[:, :1])], 1))
        return total[:, :-1] / total[:, -1:].clamp(min=1), total[:, -1] > 0

    everywhere, held = mean(torch.cat([offset, normals, colours], 1), flat, count * resolution**3)
    voxel = (held if support is None else support.flatten()).nonzero()[:, 0]
    filled, n = held[voxel], len(voxel)
    row = torch.full((count * resolution**3,), -1, device=device)
    row[voxel] = torch.arange(n, device=device)
    inside = row[flat] >= 0
    owner = row[flat][inside]
    offset, normals, colours = offset[inside], normals[inside], colours[inside]
    members = torch.bincount(owner, minlength=n)

    squares, _ = mean(colours.square(), owner, n)
    average = _nearest(everywhere, held, resolution)[voxel]
    spread = torch.where(filled[:, None], (squares - average[:, 6:].square()).clamp(min=0).sqrt(), 0.0)
    octant = ((offset > 0) * torch.tensor([4, 2, 1], device=device)).sum(1)
    parts, part_held = mean(torch.cat([offset, normals, colours], 1), owner * 8 + octant, n * 8)
    octants = torch.cat([parts, part_held[:, None].float()], 1).reshape(n, -1)
    sub = ((offset + 0.5) * FINE).long().clamp(0, FINE - 1)
    fine = torch.zeros(n * FINE**3, device=device)
    fine[owner * FINE**3 + (sub[:, 0] * FINE + sub[:, 1]) * FINE + sub[:, 2]] = 1.0
    feats = torch.cat([average, spread, octants, fine.reshape(n, -1)], 1)

    order = torch.argsort(owner, stable=True)
    first = torch.cumsum(members, 0) - members
    slot = torch.arange(slots, device=device)[None] % members[:, None].clamp(min=1)
    pick = order[(first[:, None] + slot).clamp(max=len(order) - 1)]
    z, rest = voxel % resolution, voxel // resolution
    coords = torch.stack([rest // resolution**2, rest // resolution % resolution, rest % resolution, z], 1).int()
    return VoxelBatch(coords, filled, feats, offset[pick], normals[pick], colours[pick])


def _nearest(values: Tensor, known: Tensor, resolution: int, reach: int = 4) -> Tensor:
    """Offsets, normals and colours [B R^3, 9] of all voxels: as they are where `known` [B R^3], else the means over the
    neighbours that were found so, up to `reach` voxels away; 0 beyond. Offsets are from each voxel's own centre."""
    side = torch.arange(resolution, device=values.device, dtype=values.dtype)
    centre = torch.stack(torch.meshgrid(side, side, side, indexing="ij"))
    field = values.unflatten(0, (-1, *[resolution] * 3)).movedim(-1, 1).clone()
    known = known.to(values.dtype).unflatten(0, (-1, 1, *[resolution] * 3))
    field[:, :3] += centre
    field *= known
    for _ in range(reach):
        share = F.avg_pool3d(known, 3, 1, 1)
        around = F.avg_pool3d(field, 3, 1, 1) / share.clamp(min=1e-6)
        field = torch.where(known > 0, field, around)
        known = (share > 0).to(values.dtype)
    field[:, :3] -= centre
    field *= known
    return field.movedim(1, -1).flatten(0, 3)


@dataclass
class CornerTargets:
    """Targets at the corners of cubes [M, 4] of the fine grid.

    sdf [M, 8] in units of one cube (positive outside), what errors of it weigh [M, 8], colours and normals [M, 8, 3],
    and near [M, 8]: a surface sample lies within reach, so colour and normal are known.
    """

    sdf: Tensor
    weight: Tensor
    colours: Tensor
    normals: Tensor
    near: Tensor

    def of_voxels(self, rows: Tensor, each: int) -> CornerTargets:
        """Those of the voxels `rows` [V], where every voxel has `each` cubes, one voxel's after another's."""
        parts = (getattr(self, field.name).unflatten(0, (-1, each)) for field in fields(self))
        return CornerTargets(*(part[rows].flatten(0, 1) for part in parts))


def inside_weights(cubes: Tensor, inside: Tensor, solid: Tensor) -> Tensor:
    """Weights [M, 8] of the corners of cubes [M, 4] (object, x, y, z): 1 outside, and for those that are `inside`
    [M, 8] as many times 1 as the object fills less than a third of the 3^3 blocks around, up to `INSIDE_WEIGHT`.

    Where the views leave a part's place open, each place is likelier to be outside than inside if the part is thin, and
    all of it would vanish. What has a flat side fills a third or more. solid [B, 1, S, S, S]: whether the middle of a
    block of `FINE`^3 cubes is inside, which counts for blocks without any of the cubes.
    """
    side = solid.shape[-1]
    x, y, z = (cubes[:, 1:].long() // FINE).unbind(1)
    block = ((cubes[:, 0].long() * side + x) * side + y) * side + z
    shares = inside.float().mean(1)
    sums = torch.zeros(solid.numel(), 2, device=cubes.device)
    sums.index_add_(0, block, torch.stack([shares, torch.ones_like(shares)], 1))
    filled = torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1].clamp(min=1), solid.flatten().float())
    share = F.avg_pool3d(filled.reshape(solid.shape), 3, 1, 1)
    weight = (1 / (3 * share.clamp(min=1e-3))).clamp(1, INSIDE_WEIGHT).flatten()[block]
    return torch.where(inside, weight[:, None], 1.0)


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

    hidden = cache.inside(instances, position / resolution - 0.5, batch)
    sdf = torch.where(hidden, -distance, distance) - thickness
    colours = samples.colours.reshape(-1, 3)[nearest]

    def spread(values: Tensor) -> Tensor:
        return values[back].reshape(len(cubes), 8, *values.shape[1:])

    blocks = -(-resolution // FINE)
    grid = torch.cartesian_prod(*[(torch.arange(blocks, device=device) + 0.5) / blocks - 0.5] * 3)
    owner = torch.arange(count, device=device).repeat_interleave(len(grid))
    solid = cache.inside(instances, grid.repeat(count, 1), owner)
    weight = inside_weights(cubes, spread(sdf < 0), solid.reshape(count, 1, blocks, blocks, blocks))
    return CornerTargets(spread(sdf), weight, spread(colours), spread(normal), spread(near))
