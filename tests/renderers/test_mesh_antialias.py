from __future__ import annotations

import mesh_reference as reference
import pytest
import torch
from golden_io import assert_close

from trellis.errors import InputError
from trellis.renderers.cameras import orbit
from trellis.renderers.mesh_raster import antialias, rasterize, render_mesh


def mask_of(screen: torch.Tensor, faces: torch.Tensor, size: int = 24) -> torch.Tensor:
    raster = rasterize(screen, faces, size, size)
    return antialias(raster.mask.unsqueeze(-1).float(), screen, faces, raster)[..., 0]


def rectangle(left: float, top: float, right: float, bottom: float, z: float = 2.0) -> torch.Tensor:
    corners = [[left, top, z], [right, top, z], [right, bottom, z], [left, bottom, z]]
    return torch.tensor(corners)


QUAD = torch.tensor([[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize("offset", [0.0, 0.2, 0.4, 0.6, 0.8])
def test_straight_borders_blend_by_exact_coverage(offset):
    mask = mask_of(rectangle(5 + offset, 6.3, 17.0, 14.5 + offset / 2), QUAD)
    coverage = (torch.arange(24) + 1 - 5 - offset).clamp(0, 1) * (torch.arange(24) < 17)
    assert_close(mask[10], coverage, atol=1e-5, rtol=0)
    assert_close(mask.sum(dim=0)[10], torch.tensor(14.5 + offset / 2 - 6.3), atol=1e-4, rtol=0)


def test_the_diagonal_inside_a_quad_is_no_silhouette():
    mask = mask_of(rectangle(4.0, 4.0, 18.0, 18.0), QUAD)
    assert_close(mask[4:18, 4:18], torch.ones(14, 14))
    assert float(mask.sum()) == pytest.approx(14 * 14)


@pytest.mark.parametrize("size", [64, 192])
@pytest.mark.parametrize("subdivisions", [0, 2, 4])
def test_silhouette_gradient_matches_finite_differences(subdivisions, size):
    """d/dt of sum(mask * ramp) under translation and scaling, from triangles of half the image to below a pixel."""
    vertices, faces = reference.icosphere(subdivisions)
    camera = orbit(torch.tensor([0.4]), torch.tensor([0.3]), size=size)
    ramp = 0.7 * torch.linspace(-1, 1, size)[None, :, None] + 0.9 * torch.linspace(0, 1, size)[:, None, None]
    tolerance = 0.04 if size == 64 else 0.025
    for direction in (*torch.eye(3), None):

        def loss(t: torch.Tensor, direction: torch.Tensor | None = direction) -> torch.Tensor:
            moved = vertices * (1 + t) if direction is None else vertices + t * direction
            return (render_mesh(moved, faces, None, camera)["mask"] * ramp).double().sum() / size**2

        t = torch.zeros((), requires_grad=True)
        loss(t).backward()
        step = 0.02
        numeric = (loss(torch.tensor(step)) - loss(torch.tensor(-step))) / (2 * step)
        assert float(t.grad) == pytest.approx(float(numeric), rel=tolerance)


def test_mask_area_is_the_true_area():
    vertices, faces = reference.icosphere(4)
    small, large = (orbit(torch.tensor([0.4]), torch.tensor([0.3]), size=size) for size in (48, 48 * 16))
    area = float(render_mesh(vertices, faces, None, small)["mask"].sum())
    truth = float(render_mesh(vertices, faces, None, large, antialiased=False)["mask"].sum()) / 16**2
    assert area == pytest.approx(truth, rel=2e-3)


def test_gradients_of_colours_match_finite_differences():
    generator = torch.Generator().manual_seed(2)
    screen = rectangle(5.3, 6.2, 17.4, 15.6) + 0.05 * torch.randn(4, 3, generator=generator)
    image = torch.rand(24, 24, 2, generator=generator)
    upstream = torch.rand(24, 24, 2, generator=generator)
    raster = rasterize(screen, QUAD, 24, 24)

    def loss(colors: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return (antialias(colors, positions, QUAD, raster).double() * upstream).sum()

    inputs = image.clone().requires_grad_(), screen.clone().requires_grad_()
    loss(*inputs).backward()
    step = 1e-3
    for vertex in range(4):
        for axis in range(2):
            shift = torch.zeros(4, 3)
            shift[vertex, axis] = step
            numeric = (loss(image, screen + shift) - loss(image, screen - shift)) / (2 * step)
            assert float(inputs[1].grad[vertex, axis]) == pytest.approx(float(numeric), abs=2e-3)
    # Blending is linear in the image, so one random direction tells all.
    direction = torch.rand(24, 24, 2, generator=generator)
    numeric = loss(image + direction, screen) - loss(image, screen)
    assert float((inputs[0].grad * direction).sum()) == pytest.approx(float(numeric), rel=1e-5)
    assert float(inputs[1].grad[:, 2].abs().sum()) == 0


def test_a_hidden_silhouette_has_no_effect():
    front, back = rectangle(3.0, 3.0, 20.0, 20.0, z=1.0), rectangle(6.3, 7.4, 15.2, 14.7, z=3.0)
    screen = torch.cat([front, back]).requires_grad_()
    faces = torch.cat([QUAD, QUAD + 4])
    raster = rasterize(screen, faces, 24, 24)
    image = torch.rand(24, 24, 3, generator=torch.Generator().manual_seed(0))
    result = antialias(image, screen, faces, raster)
    assert torch.equal(result[5:18, 5:18], image[5:18, 5:18])
    result.square().sum().backward()
    assert float(screen.grad[4:].abs().sum()) == 0 < float(screen.grad[:4].abs().sum())


def test_a_silhouette_before_another_surface_blends_with_it():
    front, back = rectangle(8.0, 8.0, 14.7, 16.0, z=1.0), rectangle(2.0, 2.0, 22.0, 22.0, z=3.0)
    faces = torch.cat([QUAD, QUAD + 4])
    screen = torch.cat([front, back])
    raster = rasterize(screen, faces, 24, 24)
    is_front = (raster.face_ids < 2) & raster.mask
    result = antialias(is_front.unsqueeze(-1).float(), screen, faces, raster)[..., 0]
    assert_close(result[12, 13:16], torch.tensor([1.0, 0.7, 0.0]), atol=1e-5, rtol=0)


def test_optimisation_pushes_a_square_onto_its_target():
    base = rectangle(-0.25, -0.25, 0.25, 0.25) * torch.tensor([1.0, 1.0, 0.0])
    shift = torch.tensor([0.25, 0.10])

    def mask_at(offset: torch.Tensor) -> torch.Tensor:
        places = (base[:, :2] + offset) * 48 + 32
        return mask_of(torch.cat([places, torch.full((4, 1), 2.0)], dim=1), QUAD, 64)

    target = mask_at(shift)
    offset = torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.Adam([offset], lr=0.01)
    for _ in range(100):
        optimiser.zero_grad()
        loss = (mask_at(offset) - target).square().mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 1e-4
    assert_close(offset.detach(), shift, atol=5e-3, rtol=0)


def test_image_of_another_size_is_refused():
    screen = rectangle(4, 4, 10, 10)
    raster = rasterize(screen, QUAD, 24, 24)
    with pytest.raises(InputError, match="of its raster"):
        antialias(torch.zeros(12, 12, 1), screen, QUAD, raster)
