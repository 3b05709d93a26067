"""Thin parts that have come apart, on a grid of 24 cells a side: rods along x through its middle."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components

from trellis.representations.flexicubes import bridge_gaps, build_corner_grid, cubes_to_mesh

SIDE = 24
COORDS = torch.cartesian_prod(*[torch.arange(SIDE)] * 3)
CORNERS = (COORDS[:, None] + torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)])).double()
bridged = partial(bridge_gaps, COORDS, res=SIDE, reach=8, width=2.5, depth=0.4, limit=1.4)


def rod(*gaps: float, height: float = 0.6, spread: float = 2.0) -> torch.Tensor:
    """Distances [N, 8] of a rod of radius 1.5 and length 20, up to `height` outside at gaps along x."""
    x, y, z = CORNERS.unbind(-1)
    bumps = sum(((x - gap) / spread).square().neg().exp() for gap in gaps)
    return torch.maximum(torch.hypot(y - 12, z - 12) - 1.5 + (1.5 + height) * bumps, (x - 12).abs() - 10)


def pieces(sdf: torch.Tensor) -> int:
    """In how many pieces the inside is."""
    grid = build_corner_grid(COORDS, SIDE)
    inside = np.zeros(grid.shape, bool)
    inside.flat[grid.corners] = grid.mean(sdf).squeeze(1) < 0
    return ndimage.label(inside)[1]


def test_a_rod_in_pieces_is_made_whole_where_it_is_broken_and_nowhere_else():
    broken = rod(6, 17)
    before = broken.clone()
    assert pieces(broken) == 3
    whole = bridged(broken)
    assert torch.equal(broken, before)
    assert pieces(whole) == 1
    grid = build_corner_grid(COORDS, SIDE)
    spread = (whole.view(-1)[grid.sources.clamp(min=0)] - grid.mean(whole)).abs()
    assert spread[grid.sources >= 0].max() < 1e-12, "cubes agree on the corners that they share"
    x, y, z = CORNERS.unbind(-1)
    near = (torch.hypot(y - 12, z - 12) < 2.5 + 1e-6) & (torch.minimum((x - 6).abs(), (x - 17).abs()) < 5)
    assert torch.equal(whole[~near], broken[~near])
    middle = (y == 12) & (z == 12)
    assert (whole[middle & near] <= -0.4 + 1e-9).any() and whole[middle & ((x - 12).abs() < 10)].max() < 0


def test_the_mesh_of_a_bridged_rod_is_closed_and_in_one_piece():
    feats = torch.zeros(len(COORDS), 53)
    feats[:, :8] = bridged(rod(12)).float()
    mesh = cubes_to_mesh(COORDS, feats, SIDE, sdf_bias=0.0)
    edges = torch.stack([mesh.faces, mesh.faces.roll(-1, 1)], -1).reshape(-1, 2).sort(1).values
    assert (edges.unique(dim=0, return_counts=True)[1] == 2).all()
    links = sparse.coo_matrix((np.ones(3 * len(mesh.faces)), (mesh.faces.flatten(), mesh.faces.roll(-1, 1).flatten())),
                              shape=[len(mesh.vertices)] * 2)  # fmt: skip
    assert connected_components(links, directed=False)[0] == 1


def test_nothing_is_changed_where_the_decoder_is_sure_that_nothing_is_there():
    for unchanged in (rod(), rod(12, height=1.6), rod(12, height=1.2, spread=8)):  # whole; too high; too far
        assert bridged(unchanged) is unchanged


def test_a_crumb_is_no_piece():
    crumb = rod()
    x, y, z = CORNERS.unbind(-1)
    crumb = torch.where((x == 12) & (y == 12) & (z == 16), -0.5, crumb)
    assert pieces(crumb) == 2 and bridged(crumb) is crumb


def test_gradients_pass_through_a_bridge():
    broken = rod(12).requires_grad_()
    bridged(broken).sum().backward()
    assert torch.equal(broken.grad, torch.ones_like(broken))


def test_no_cubes_need_no_bridge():
    nothing = torch.zeros(0, 8)
    assert bridge_gaps(COORDS[:0], nothing, SIDE, reach=8, width=2.5, depth=0.4, limit=1.4) is nothing
