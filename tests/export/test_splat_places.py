"""Splats laid on a surface."""

from __future__ import annotations

import pytest
import torch
from shapes import mesh_of, sphere

from trellis.export.splat_places import laid_on_surface
from trellis.representations.gaussian import SH_DC, Gaussian, quaternion_to_matrix

RADIUS = 0.4


@pytest.fixture(scope="module")
def ball():
    mesh = sphere(RADIUS, 4)
    return mesh_of(mesh.vertices, mesh.faces)


def splats_at(centers: torch.Tensor) -> Gaussian:
    """Round, half transparent ones whose colours tell where they are."""
    gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1])
    gaussian.from_xyz(centers)
    gaussian.from_features((centers / SH_DC)[:, None])
    gaussian.from_scaling(torch.full((len(centers), 3), 0.01))
    gaussian.from_rotation(torch.tensor([[1.0, 0, 0, 0]]).expand(len(centers), 4))
    gaussian.from_opacity(torch.full((len(centers), 1), 0.4))
    return gaussian


def outward(count: int) -> torch.Tensor:
    directions = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    directions[:2] = torch.tensor([[0.0, 0, 1], [0, 0, -1]])
    return torch.nn.functional.normalize(directions, dim=1)


def test_splats_become_opaque_discs_on_the_surface_and_keep_their_colours(ball):
    directions = outward(3000)
    height = 0.03 * (torch.rand(3000, 1, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    before = splats_at(directions * (RADIUS + height))
    after = laid_on_surface(before, ball)
    assert len(after) == 3000 and torch.equal(after.get_features, before.get_features)
    assert (after.get_xyz.norm(dim=1) - RADIUS).abs().max() < 0.003
    assert (torch.nn.functional.normalize(after.get_xyz, dim=1) * directions).sum(1).min() > 0.999
    assert (after.get_opacity > 0.95).all() and (before.get_opacity < 0.5).all()
    thin = quaternion_to_matrix(after.get_rotation)[:, :, 2]
    assert (thin * directions).sum(1).median() > 0.99
    wide, flat = after.get_scaling[:, :2], after.get_scaling[:, 2]
    assert torch.allclose(wide[:, 0], wide[:, 1]) and (flat < 0.2 * wide[:, 0]).all()
    # 3,000 discs have to cover the sphere, and not more than its outline.
    assert 1 < 3000 * (torch.pi * wide[:, 0].square()).mean() / (4 * torch.pi * RADIUS**2) < 4


def test_splats_off_the_surface_are_left_out_and_a_few_are_left_alone(ball):
    directions = outward(200)
    after = laid_on_surface(splats_at(torch.cat([directions * RADIUS, directions * 0.2])), ball)
    assert len(after) == 200 and after.get_xyz.norm(dim=1).min() > 0.39
    lost = splats_at(directions * 0.2)
    assert laid_on_surface(lost, ball) is lost
