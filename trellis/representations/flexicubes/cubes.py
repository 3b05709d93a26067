"""From the mesh decoder's per-voxel features to a mesh, working only where the surface is.

Channels of a voxel (101, or 53 without colour): signed distance 8 | deformation 8 x 3 | weights 21 (beta 12, alpha 8,
gamma 1) | colour 8 x 6 (rgb, normal). Corner order: x fastest.

Voxels that share a corner each predict it; the mean counts. Corners that no voxel predicts are outside (+1), so the
surface also closes where the voxels end inside the object. The cubes it passes through there hold no prediction and
have neutral weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from ..mesh import MeshExtractResult
from .surface import extract_surface
from .tables import CORNERS
from .topology import build_topology

SDF, DEFORM, WEIGHTS, COLOUR = slice(0, 8), slice(8, 32), slice(32, 53), slice(53, 101)
_WEIGHT_SCALE = 0.99  # keeps alpha and beta in (0.01, 1.99) and gamma in (0.005, 0.995)


@dataclass(frozen=True)
class CornerGrid:
    """The corners of a set of voxels and who predicts them.

    Attributes:
        origin: int64 [3], grid coordinates of the first corner of the box.
        shape: corners per axis of the box that holds the voxels and their neighbours, cut at the border of the grid.
        corners: int64 [C], flat indices into the box of the corners that touch a voxel, ascending.
        sources: int64 [C, 8], rows of a `[N * 8, ...]` per-corner feature table that predict the corner, -1 for none.
        row_of_voxel: int32 over the box's cubes, row of the voxel there, -1 for none.
    """

    origin: Tensor
    shape: tuple[int, int, int]
    corners: Tensor
    sources: Tensor
    row_of_voxel: Tensor

    @property
    def coords(self) -> Tensor:
        """Grid coordinates of `corners`, int64 [C, 3]."""
        return self.coords_of(self.corners)

    def coords_of(self, flat: Tensor) -> Tensor:
        """Grid coordinates of flat box indices."""
        return torch.stack(torch.unravel_index(flat, self.shape), dim=1) + self.origin

    def mean(self, feats: Tensor, sources: Tensor | None = None) -> Tensor:
        """Mean prediction at each corner, float [C, D], of per-voxel corner features `feats` [N, 8 * D].

        `sources` selects other corners than all of `corners`; those without any source get 0.
        """
        sources = self.sources if sources is None else sources
        known = sources >= 0
        weights = known / known.sum(1, keepdim=True).clamp(min=1)
        table = feats.reshape(len(feats) * 8, -1)
        return embedding_bag(sources.clamp(min=0), table, mode="sum", per_sample_weights=weights.to(table.dtype))


@torch.no_grad()
def build_corner_grid(coords: Tensor, res: int) -> CornerGrid:
    """Number the corners of voxels `coords`, int [N, 3] in [0, res), N > 0.

    Raises:
        ValueError: a voxel lies outside the grid or appears twice.
    """
    coords = coords.long()
    low, high = coords.amin(0), coords.amax(0)
    if int(low.min()) < 0 or int(high.max()) >= res:
        raise ValueError(f"Voxel coordinates must lie in [0, {res}), got {int(low.min())} to {int(high.max())}.")
    low, high = (low - 1).clamp(min=0), (high + 1).clamp(max=res - 1)
    cells = (high - low + 1).tolist()
    shape = tuple(n + 1 for n in cells)
    local = coords - low

    # One spare layer of cubes on every side, so that looking up the eight cubes around a corner needs no bounds check.
    padded = [n + 2 for n in cells]
    strides = torch.tensor([padded[1] * padded[2], padded[2], 1], device=coords.device)
    row_of_voxel = torch.full(padded, -1, dtype=torch.int32, device=coords.device)
    row_of_voxel.view(-1)[((local + 1) * strides).sum(1)] = torch.arange(
        len(coords), dtype=torch.int32, device=coords.device
    )
    if int((row_of_voxel >= 0).sum()) != len(coords):
        raise ValueError("Voxel coordinates must not repeat.")

    offsets = torch.from_numpy(CORNERS).to(coords.device)
    touched = torch.zeros(shape, dtype=torch.bool, device=coords.device)
    for offset in offsets:
        touched[(local + offset).unbind(1)] = True
    corners = touched.view(-1).nonzero().squeeze(1)
    at = ((torch.stack(torch.unravel_index(corners, shape), dim=1) + 1) * strides).sum(1)
    # The voxel that holds this corner as its corner k starts k's offset earlier.
    voxels = row_of_voxel.view(-1)[at[:, None] - (offsets * strides).sum(1)].long()
    sources = torch.where(voxels >= 0, voxels * 8 + torch.arange(8, device=coords.device), -1)
    return CornerGrid(low, shape, corners, sources, row_of_voxel[1:-1, 1:-1, 1:-1])


def map_weights(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Raw weight channels [K, 21] to alpha [K, 8], beta [K, 12], gamma [K], all positive; raw 0 is neutral."""
    beta = 1 + _WEIGHT_SCALE * torch.tanh(raw[:, :12])
    alpha = 1 + _WEIGHT_SCALE * torch.tanh(raw[:, 12:20])
    gamma = _WEIGHT_SCALE * torch.sigmoid(raw[:, 20]) + (1 - _WEIGHT_SCALE) / 2
    return alpha, beta, gamma


def corner_positions(coords: Tensor, deform: Tensor, res: int) -> Tensor:
    """Object-frame positions [C, 3] of grid corners; `deform` moves each by less than half a voxel per axis."""
    return coords.to(deform.dtype) / res - 0.5 + (1 - 1e-8) / (2 * res) * torch.tanh(deform)


def cubes_to_mesh(
    coords: Tensor, feats: Tensor, res: int, training: bool = False, sdf_bias: float | None = None
) -> MeshExtractResult:
    """Extract the surface that a mesh decoder describes. Differentiable in `feats`.

    Memory is a few bytes per lattice point of the voxels' bounding box plus a multiple of `feats` where the surface is.

    Args:
        coords: int [N, 3] (x, y, z) or [N, 4] (batch, x, y, z) with one batch entry, in [0, res), without repeats.
        feats: float [N, 101], or [N, 53] without colour; half precision is widened to float32.
        res: voxels per axis.
        training: see `extract_surface`; also fills `corner_positions`, `corner_sdf` and `regularizers`: "deviation"
            (distance of dual vertices to their crossings), "consistency" (spread of the predictions of a shared
            corner), "sdf" (mean magnitude of the biased distances).
        sdf_bias: added to every signed distance; None for -1/res, as published decoders expect.

    Returns:
        The mesh; without any sign change it is empty and `success` is False.

    Raises:
        ValueError: wrong shapes, several batch entries, or coordinates outside the grid or repeated.
    """
    coords = _check(coords, feats)
    coloured = feats.shape[1] == COLOUR.stop
    feats = feats if feats.dtype == torch.float64 else feats.float()
    if len(coords) == 0:
        return _empty(feats, coloured, res)
    grid = build_corner_grid(coords, res)
    biased = feats[:, SDF] + (-1 / res if sdf_bias is None else sdf_bias)
    corner_sdf = grid.mean(biased).squeeze(1)

    inside = torch.zeros(grid.shape, dtype=torch.bool, device=feats.device)
    inside.view(-1)[grid.corners] = corner_sdf.detach() < 0
    topology = build_topology(inside)

    # Everything from here on concerns the corners of crossed cubes only; some of them no voxel predicts.
    slot = torch.searchsorted(grid.corners, topology.corners).clamp(max=len(grid.corners) - 1)
    known = grid.corners[slot] == topology.corners
    sources = torch.where(known[:, None], grid.sources[slot], -1)
    sdf = torch.where(known, corner_sdf[slot], 1.0)
    deform = grid.mean(feats[:, DEFORM], sources)
    positions = corner_positions(grid.coords_of(topology.corners), deform, res)
    colours = torch.sigmoid(grid.mean(feats[:, COLOUR], sources)) if coloured else None

    rows = grid.row_of_voxel[topology.cubes.unbind(1)].long()
    raw = torch.where((rows >= 0)[:, None], feats[:, WEIGHTS][rows.clamp(min=0)], 0.0)
    surface = extract_surface(topology, sdf, positions, *map_weights(raw), attributes=colours, training=training)
    mesh = MeshExtractResult(surface.vertices, surface.faces, surface.attributes, res)
    if training:
        mesh.corner_sdf = corner_sdf
        mesh.corner_positions = corner_positions(grid.coords, grid.mean(feats[:, DEFORM]), res)
        mesh.regularizers = {
            "deviation": surface.deviation.mean() if len(surface.deviation) else biased.sum() * 0,
            "consistency": _consistency(grid, feats, coloured),
            "sdf": biased.abs().mean(),
        }
    return mesh


def _check(coords: Tensor, feats: Tensor) -> Tensor:
    """The spatial part of `coords`, after checking what can be checked without a grid."""
    if coords.dim() != 2 or coords.shape[1] not in (3, 4) or coords.is_floating_point():
        raise ValueError(f"coords must be integers [N, 3] or [N, 4], got {coords.dtype} {tuple(coords.shape)}.")
    if feats.dim() != 2 or feats.shape[1] not in (WEIGHTS.stop, COLOUR.stop) or len(feats) != len(coords):
        raise ValueError(
            f"feats must have shape [{len(coords)}, 101] (or 53 channels without colour), got {tuple(feats.shape)}."
        )
    if coords.shape[1] == 4:
        if len(coords) and bool((coords[:, 0] != coords[0, 0]).any()):
            raise ValueError("coords hold several batch entries; extract them one by one.")
        coords = coords[:, 1:]
    return coords


def _empty(feats: Tensor, coloured: bool, res: int) -> MeshExtractResult:
    vertices = feats.new_zeros(0, 3)
    faces = torch.zeros(0, 3, dtype=torch.long, device=feats.device)
    return MeshExtractResult(vertices, faces, feats.new_zeros(0, 6) if coloured else None, res)


def _consistency(grid: CornerGrid, feats: Tensor, coloured: bool) -> Tensor:
    """Mean squared difference between what voxels predict for a corner and the mean prediction there."""
    parts = [feats[:, SDF, None], feats[:, DEFORM].unflatten(1, (8, 3))]
    if coloured:
        parts.append(feats[:, COLOUR].unflatten(1, (8, 6)))
    table = torch.cat(parts, dim=2).flatten(1)
    mean = grid.mean(table)
    predicted = pad(table.reshape(len(feats) * 8, -1), (0, 0, 0, 1))  # the last row answers for -1
    difference = (predicted[grid.sources] - mean[:, None]) * (grid.sources >= 0)[..., None]
    return difference.square().sum() / table.numel()
