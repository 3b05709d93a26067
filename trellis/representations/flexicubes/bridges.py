"""Bridges over the gaps at which thin parts have come apart.

What a mesh decoder is unsure of comes out a little outside: rods and legs end in pieces, between which distances are
low all the same. Along the bottom of these valleys distances are lowered until the pieces meet. What is in one piece
stays as it is.
"""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
from scipy import ndimage, sparse
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from .cubes import CornerGrid, build_corner_grid

_CRUMB = 4  # corners; less than that is noise, to which nothing leads
_STEP = 0.15  # what a step costs beside the distances it passes, so that a way along a flat valley is short


def bridge_gaps(
    coords: Tensor, sdf: Tensor, res: int, *, reach: int, width: float, depth: float, limit: float
) -> Tensor:
    """Lower signed distances along the easiest ways between pieces of the inside.

    Args:
        coords: int [N, 3], cubes of a grid of `res` a side, without repeats.
        sdf: [N, 8] at the cubes' corners, x fastest, in cells; negative inside. Not changed.
        reach: the longest way, in corners outside.
        width: distance in cells from a way at which its lowering has faded out.
        depth: how far inside, in cells, a way is in the end.
        limit: the highest distance, in cells, that a way may pass: beyond it the decoder is sure that nothing is there.

    Returns:
        [N, 8] distances, `sdf` itself if there is nothing to join.
    """
    if len(coords) == 0:
        return sdf
    grid = build_corner_grid(coords, res)
    heights = grid.mean(sdf.detach()).squeeze(1).double().cpu().numpy()
    needs = _ways(grid, heights, reach, depth, limit)
    if not needs.any():
        return sdf
    ways = np.argwhere(needs)
    around = tuple(slice(max(0, low - ceil(width)), high + ceil(width) + 1)
                   for low, high in zip(ways.min(axis=0), ways.max(axis=0), strict=True))  # fmt: skip
    distance, nearest = ndimage.distance_transform_edt(needs[around] == 0, return_indices=True)
    lowering = np.zeros(grid.shape)
    lowering[around] = needs[around][tuple(nearest)] * (1 - distance / width).clip(0)
    return sdf - _to_cubes(grid, torch.from_numpy(lowering).view(-1), sdf)


def _ways(grid: CornerGrid, heights: np.ndarray, reach: int, depth: float, limit: float) -> np.ndarray:
    """By how much every corner of the box [X, Y, Z] has to be lowered; 0 for those on no way.

    All pieces grow at the same time over the corners [C] outside, those of low `heights` first, until they meet. Of the
    meetings that are allowed the cheapest are taken, none of which joins what is joined already (Kruskal's tree).
    """
    corners = grid.corners.cpu().numpy()
    inside = np.zeros(grid.shape, bool)
    inside.flat[corners] = heights < 0
    pieces, count = ndimage.label(inside)
    large = np.bincount(pieces.ravel(), minlength=count + 1) >= _CRUMB
    large[0] = False
    needs = np.zeros(grid.shape)
    if large.sum() < 2:
        return needs
    piece = np.where(large[pieces.flat[corners]], pieces.flat[corners], 0)
    outside = heights.clip(0)
    first, second = _neighbours(grid, corners)
    costs = _STEP + (outside[first] + outside[second]) / 2
    steps = sparse.csr_matrix((costs, (first, second)), shape=[len(corners)] * 2)
    far, before, source = dijkstra(
        steps, directed=False, indices=np.flatnonzero(piece), return_predecessors=True, min_only=True
    )
    owner = np.where(np.isfinite(far), piece[source.clip(0)], 0)
    meets = (owner[first] != owner[second]) & (owner[first] > 0) & (owner[second] > 0)
    first, second, costs = first[meets], second[meets], (far[first] + far[second] + costs)[meets]
    cheapest = np.argsort(costs, kind="stable")
    pairs = np.sort(np.stack([owner[first], owner[second]])[:, cheapest], axis=0)
    _, of_pair = np.unique(pairs[0] * (count + 1) + pairs[1], return_index=True)  # the cheapest meeting of each two
    joined = np.arange(count + 1)
    for meeting in cheapest[np.sort(of_pair)]:
        ends = first[meeting], second[meeting]
        one, other = (joined[owner[end]] for end in ends)
        way = [corner for end in ends for corner in _back(end, before, piece)]
        if one == other or len(way) > reach or outside[way].max(initial=0) > limit:
            continue
        joined[joined == other] = one
        needs.flat[corners[way]] = outside[way] + depth
    return needs


def _neighbours(grid: CornerGrid, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all pairs of corners that lie beside each other, [E] and [E]."""
    row = np.full(grid.shape, -1)
    row.flat[corners] = np.arange(len(corners))
    pairs = []
    for axis in range(3):
        slices = np.moveaxis(row, axis, 0)
        pair = np.stack([slices[:-1].ravel(), slices[1:].ravel()])
        pairs.append(pair[:, (pair >= 0).all(axis=0)])
    first, second = np.concatenate(pairs, axis=1)
    return first, second


def _back(corner: int, before: np.ndarray, piece: np.ndarray) -> list[int]:
    """The way from a corner outside back to the piece it was reached from, without the piece."""
    way = []
    while piece[corner] == 0:
        way.append(corner)
        corner = before[corner]
    return way


def _to_cubes(grid: CornerGrid, values: Tensor, like: Tensor) -> Tensor:
    """Values of the box's corners as those of the cubes' corners, shaped like [N, 8]."""
    sources = grid.sources.cpu()
    table = torch.zeros(like.numel(), dtype=like.dtype)
    known = sources >= 0
    table[sources[known]] = values[grid.corners.cpu()].to(like.dtype)[:, None].expand_as(sources)[known]
    return table.view(like.shape).to(like.device)
