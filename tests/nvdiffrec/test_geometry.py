"""Shape parameters: exact inverses and gradients, smooth steps, and grids that start where they should."""

from __future__ import annotations

import pytest
import torch
from nvdiffrec_shapes import ball_views, bumpy_ball

from nvdiffrec.from_scratch import GridSettings, fit_grid
from nvdiffrec.geometry import LargeSteps, SmoothnessTerms, UniformAdam, manifold_edges
from nvdiffrec.grid import FlexiGrid, hull_distance, locate, mesh_distance
from trellis.errors import InputError
from trellis.renderers.cameras import Cameras


def test_the_preconditioned_parameter_gives_the_vertices_back():
    geometry = bumpy_ball(3)
    steps = LargeSteps(geometry.faces, len(geometry.vertices))
    again = steps.to_vertices(steps.to_parameter(geometry.vertices))
    torch.testing.assert_close(again, geometry.vertices, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dense", [False, True])
def test_its_gradient_is_exact(dense):
    geometry = bumpy_ball(1)
    steps = LargeSteps(geometry.faces, len(geometry.vertices), 7.0, dense)
    torch.testing.assert_close(
        steps.to_vertices(steps.to_parameter(geometry.vertices)), geometry.vertices, atol=1e-6, rtol=0
    )
    parameter = steps.to_parameter(geometry.vertices.double()).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: steps.to_vertices(u).sin(), (parameter,))


def test_a_step_towards_one_displaced_vertex_moves_its_neighbourhood():
    geometry = bumpy_ball(3)
    steps = LargeSteps(geometry.faces, len(geometry.vertices))
    parameter = steps.to_parameter(geometry.vertices).requires_grad_()
    optimiser = UniformAdam(parameter, 0.1)
    (-steps.to_vertices(parameter)[0, 2]).backward()
    optimiser.step()
    moved = (steps.to_vertices(parameter.detach()) - geometry.vertices)[:, 2]
    assert int(moved.argmax()) == 0
    neighbours = geometry.faces[(geometry.faces == 0).any(1)].unique()
    assert float(moved[neighbours].min()) > 0.5 * float(moved[0])


def test_too_many_faces_are_refused_before_anything_is_factorised():
    with pytest.raises(InputError, match="simplify it first"):
        LargeSteps(torch.zeros(1_000_000, 3, dtype=torch.long), 3)


def test_regularisers_vanish_at_rest_and_grow_with_noise():
    geometry = bumpy_ball(3)
    terms = SmoothnessTerms(geometry.vertices, geometry.faces)
    noise = 0.01 * torch.randn(geometry.vertices.shape, generator=torch.Generator().manual_seed(0))
    assert float(terms.laplacian(geometry.vertices)) < 1e-9
    assert float(terms.laplacian(geometry.vertices + noise)) > 1e-3
    calm, rough = (float(terms.normal_consistency(geometry.vertices + k * noise)) for k in (0, 1))
    assert rough > 2 * calm
    edges, _ = manifold_edges(geometry.faces)
    assert len(edges) == len(geometry.faces) * 3 // 2


def test_the_signed_distance_of_a_ball_is_its_radius_minus_the_way_to_its_centre():
    geometry = bumpy_ball(3, bumps=0.0)
    unit = torch.nn.functional.normalize(geometry.vertices, dim=1) * 0.35
    distance = mesh_distance(unit, geometry.faces, 32)
    axis = torch.linspace(-0.5, 0.5, 33)
    expected = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0) - 0.35
    near = expected.abs() < 0.1
    assert float((distance - expected)[near].abs().max()) < 1.0 / 32


def test_the_axes_of_a_lopsided_mesh_are_not_swapped():
    geometry = bumpy_ball(3)
    points = torch.nn.functional.normalize(geometry.vertices, dim=1) * torch.tensor([0.1, 0.2, 0.4])
    points = points + torch.tensor([0.05, -0.1, 0.03])
    inside = (mesh_distance(points, geometry.faces, 40) < 0).nonzero().float() / 40 - 0.5
    torch.testing.assert_close(inside.amin(0), points.amin(0), atol=0.03, rtol=0)
    torch.testing.assert_close(inside.amax(0), points.amax(0), atol=0.03, rtol=0)


def test_the_hull_is_found_wherever_the_object_is_and_however_large():
    views = ball_views(8)
    extrinsics = views.cameras.extrinsics.clone()
    shift, scale = torch.tensor([30.0, -7.0, 4.0]), 9.0
    extrinsics[:, :3, 3] = scale * extrinsics[:, :3, 3] - views.cameras.rotations @ shift
    moved = views.with_cameras(Cameras(extrinsics, views.cameras.intrinsics, views.cameras.image_size))
    placement, plain = locate(moved), locate(views)
    torch.testing.assert_close(
        torch.tensor(placement.center), scale * torch.tensor(plain.center) + shift, atol=0.3, rtol=0
    )
    assert placement.side == pytest.approx(scale * plain.side, rel=0.1)
    back = placement.cameras_to_world(placement.to_unit(moved.cameras))
    torch.testing.assert_close(back.extrinsics, extrinsics, atol=1e-3, rtol=1e-5)


def test_contradictory_cameras_are_reported():
    views = ball_views(4)
    turned = views.cameras.extrinsics.clone()
    turned[:2, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0])) @ turned[:2, :3]  # two look away from the object
    broken = Cameras(turned, views.cameras.intrinsics, views.cameras.image_size)
    with pytest.raises(InputError, match="no volume in common"):
        hull_distance(views.with_cameras(broken), 16)
    with pytest.raises(InputError, match="contradicts"):
        locate(views.with_cameras(broken))


def test_grid_gradients_equal_finite_differences():
    views = ball_views(6)
    grid = FlexiGrid(hull_distance(views, 12), flexible=True)
    for name in ("sdf", "deform", "weights"):
        start = grid.parameters[name].detach().clone()
        direction = torch.rand(start.shape, generator=torch.Generator().manual_seed(1)) * 1e-2

        def value(change, name=name, start=start, direction=direction):
            with torch.no_grad():
                grid.parameters[name].copy_(start + change * direction)
            return (grid.extract(training=True).vertices ** 2).sum(dtype=torch.float64)

        grid.parameters[name].grad = None
        value(0.0).backward()
        analytic = float((grid.parameters[name].grad * direction).sum())
        numeric = float(value(0.05) - value(-0.05)) / 0.1
        value(0.0)
        assert analytic == pytest.approx(numeric, rel=0.02, abs=1e-4)


def test_fitting_a_grid_lowers_the_loss_and_gives_a_closed_surface():
    steps = list(fit_grid(ball_views(8), GridSettings(cells=20, steps=24, resolution=48)))
    assert [s.step for s in steps] == list(range(1, 25))
    losses = [s.loss for s in steps]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    surface = steps[-1].surface
    edges, _ = manifold_edges(surface.faces)
    assert len(edges) == len(surface.faces) * 3 // 2
