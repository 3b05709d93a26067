"""Splats that wear photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes import mesh_of, pattern, photographs_of_pattern, sphere

from trellis.export.splat_colors import painted_splats
from trellis.export.surface import surface_of
from trellis.representations.gaussian import SH_DC, Gaussian

RADIUS = 0.4
OWN = 0.1  # grey of the splats before


@pytest.fixture(scope="module")
def ball():
    """A sphere, and photographs of its pattern from azimuths 0 to 160 degrees."""
    mesh = sphere(RADIUS, 4)
    surface = surface_of(mesh_of(mesh.vertices, mesh.faces))
    return surface, photographs_of_pattern(surface)


def directions() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=1)


def splats_at(centers: torch.Tensor) -> Gaussian:
    gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1])
    gaussian.from_xyz(centers)
    gaussian.from_features(torch.full((len(centers), 1, 3), (OWN - 0.5) / SH_DC))
    gaussian.from_scaling(torch.full((len(centers), 3), 0.01))
    gaussian.from_rotation(torch.tensor([[1.0, 0, 0, 0]]).expand(len(centers), 4))
    gaussian.from_opacity(torch.full((len(centers), 1), 0.8))
    return gaussian


def test_splats_take_the_colours_of_the_surface_that_they_lie_at_where_photographs_look(ball):
    surface, photographs = ball
    outward = directions()
    height = 0.02 * torch.rand(len(outward), 1, generator=torch.Generator().manual_seed(1)) - 0.01
    before = splats_at(outward * (RADIUS + height))
    done: list[int] = []
    after = painted_splats(before, surface, photographs, done.append)
    assert done == [1, 2, 3, 4, 5]
    for name in ("get_xyz", "get_scaling", "get_rotation", "get_opacity"):
        assert torch.equal(getattr(after, name), getattr(before, name))
    colors = after.get_color.numpy()
    toward = np.array([np.sin(1.4), np.cos(1.4), 0])  # the middle one of the five cameras
    ahead, behind = outward.numpy() @ toward > 0.8, outward.numpy() @ toward < -0.97
    assert ahead.sum() > 300 and behind.sum() > 30
    error = colors[ahead] - pattern(RADIUS * outward.numpy())[ahead]
    assert np.sqrt(np.square(error).mean()) < 0.03
    np.testing.assert_allclose(colors[behind], OWN, atol=1e-6)


def test_splats_off_the_surface_keep_their_colours(ball):
    surface, photographs = ball
    outward = directions()
    for radius, painted in ((RADIUS, True), (RADIUS + 0.06, False), (0.2, False)):
        after = painted_splats(splats_at(outward * radius), surface, photographs)
        assert ((after.get_color - OWN).abs().max() > 1e-3) == painted


def test_splats_take_the_colours_of_painted_ones_beside_them_rather_than_speckle_them(ball):
    surface, photographs = ball
    outward = directions()
    before = splats_at(torch.cat([outward * (RADIUS + 0.015), outward[:400] * (RADIUS + 0.04)]))
    painted, off = painted_splats(before, surface, photographs).get_color.split([4000, 400])
    toward = torch.tensor([np.sin(1.4), np.cos(1.4), 0]).float()
    ahead = outward[:400] @ toward > 0.8
    assert ahead.sum() > 20 and (off - painted[:400])[ahead].abs().mean() < 0.05
    behind = outward[:400] @ toward < -0.97
    assert behind.any() and (off[behind] - OWN).abs().max() < 1e-6


def test_the_splats_that_were_given_stay_as_they_are(ball):
    surface, photographs = ball
    before = splats_at(directions() * RADIUS)
    kept = before._features_dc.clone()
    painted_splats(before, surface, photographs)
    assert torch.equal(before._features_dc, kept)
