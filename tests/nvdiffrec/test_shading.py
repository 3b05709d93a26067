"""The renderer's gradients equal finite differences for vertices, textures, light, camera and exposure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nvdiffrec_shapes import bumpy_ball, patterned_material, ring, sky

from nvdiffrec.light import filter_light
from nvdiffrec.material import face_mip_levels, mip_pyramid, sample
from nvdiffrec.shading import PreparedMaterial, render, vertex_normals

SIZE = 160
POINTS = 9


@pytest.fixture(scope="module")
def scene():
    generator = torch.Generator().manual_seed(0)
    # A smooth random weighting of the image, so that no pixel's neighbour weighs much differently.
    weights = torch.nn.functional.interpolate(
        torch.rand(1, 4, 6, 6, generator=generator), (SIZE, SIZE), mode="bicubic", align_corners=True
    )[0].permute(1, 2, 0)
    # Towards the horizon a texture is seen ever more compressed, faster than pixels can follow: a gentle one is used.
    return bumpy_ball(4), patterned_material(frequency=2.0), sky(), ring(5, SIZE)[1], weights


def objective(scene, vertices=None, texture=None, environment=None, extrinsics=None, intrinsics=None, exposure=1.0,
              turntable=False):  # fmt: skip
    geometry, material, light, camera, weights = scene
    geometry = geometry if vertices is None else geometry.with_vertices(vertices)
    material = material if texture is None else replace(material, base_color=texture[:3], orm=texture[3:])
    image = render(
        geometry,
        PreparedMaterial.of(material),
        filter_light(light if environment is None else environment),
        camera.extrinsics[0] if extrinsics is None else extrinsics,
        camera.intrinsics[0] if intrinsics is None else intrinsics,
        (SIZE, SIZE),
        turntable=turntable,
        exposure=exposure,
    )
    return image * weights


def compare(function, start: torch.Tensor, direction: torch.Tensor, reach: float, tolerance: float) -> None:
    """The finite difference of the summed image over a path equals the mean derivative along it.

    A silhouette that passes a pixel centre makes a jump of some hundredths of a pixel, so that a plain central
    difference over a short step is noise; over a path the jumps cancel. `tolerance` is a part of all the light that
    changes, because what appears on one side nearly cancels what disappears on the other.
    """
    steps = torch.linspace(-1, 1, POINTS)
    derivatives = []
    for step in steps:
        value = (start + step * reach * direction).requires_grad_()
        function(value).sum(dtype=torch.float64).backward()
        derivatives.append((value.grad * direction).sum())
    analytic = float(torch.trapezoid(torch.stack(derivatives), steps)) / 2
    change = (function(start + reach * direction) - function(start - reach * direction)).double() / (2 * reach)
    numeric, scale = float(change.sum()), float(change.abs().sum())
    assert scale > 1e-2
    assert analytic == pytest.approx(numeric, abs=tolerance * scale), (analytic, numeric, scale)


@pytest.mark.parametrize("turntable", [False, True])
def test_vertices(scene, turntable):
    points = scene[0].vertices
    shift = torch.tensor([0.3, -0.2, 0.5]).expand_as(points)
    swell = points * torch.sin(7 * points[:, :1] + 1)
    for direction in (shift, swell):
        compare(lambda v: objective(scene, vertices=v, turntable=turntable), points, direction, 0.06, 0.025)


def test_textures(scene):
    texture = scene[1].stack
    direction = torch.randn(texture.shape, generator=torch.Generator().manual_seed(3))
    for channels in (slice(0, 3), slice(3, 4), slice(4, 5)):
        only = torch.zeros_like(direction)
        only[channels] = direction[channels].abs()
        compare(lambda t: objective(scene, texture=t), texture, only, 1e-2, 0.02)


def test_light(scene):
    direction = torch.rand(scene[2].shape, generator=torch.Generator().manual_seed(4))
    compare(lambda e: objective(scene, environment=e), scene[2], direction, 1e-2, 1e-3)


@pytest.mark.parametrize("turntable", [False, True])
@pytest.mark.parametrize("component", range(6))
def test_camera(scene, component, turntable):
    extrinsics = scene[3].extrinsics[0]
    generator = torch.zeros(6)
    generator[component] = 1.0
    x, y, z, tx, ty, tz = generator.tolist()
    twist = torch.tensor([[0, -z, y, tx], [z, 0, -x, ty], [-y, x, 0, tz], [0, 0, 0, 0]])

    def moved(change):
        return objective(scene, extrinsics=torch.linalg.matrix_exp(change * twist) @ extrinsics, turntable=turntable)

    compare(moved, torch.zeros(()), torch.ones(()), 0.06, 0.025)


def test_focal_length_and_exposure(scene):
    intrinsics = scene[3].intrinsics[0]
    direction = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    compare(lambda k: objective(scene, intrinsics=k), intrinsics, direction, 8.0, 0.025)
    compare(lambda e: objective(scene, exposure=e), torch.ones(()), torch.ones(()), 1e-2, 1e-3)


def test_a_flat_normal_map_changes_nothing_and_a_tilted_one_does(scene):
    geometry, material, light, camera, _ = scene
    filtered, args = filter_light(light), (camera.extrinsics[0], camera.intrinsics[0], (SIZE, SIZE))
    flat = torch.zeros(3, 32, 32)
    flat[2] = 1
    tilted = flat.clone()
    tilted[0] = 0.7
    plain = render(geometry, PreparedMaterial.of(material), filtered, *args)
    same = render(geometry, PreparedMaterial.of(replace(material, normal=flat)), filtered, *args)
    other = render(geometry, PreparedMaterial.of(replace(material, normal=tilted)), filtered, *args)
    torch.testing.assert_close(plain, same, atol=1e-5, rtol=1e-4)
    assert float((plain - other).abs().max()) > 0.05


def test_light_that_turns_with_the_camera_shows_in_the_image(scene):
    geometry, material, _, _, _ = scene
    lamp = torch.zeros(3, 16, 32)
    lamp[:, 6:10, 22:26] = 20.0  # to the right, seen along -y
    cameras = ring(4, SIZE)
    prepared, light = PreparedMaterial.of(material), filter_light(lamp)
    for index in range(4):
        arguments = (cameras.extrinsics[index], cameras.intrinsics[index], (SIZE, SIZE))
        image = render(geometry, prepared, light, *arguments, turntable=True)[..., :3].sum(-1)
        brighter_side = image[:, SIZE // 2 :].sum() - image[:, : SIZE // 2].sum()
        assert abs(float(brighter_side)) > 0.1 * float(image.sum())
        if index == 0:
            first = float(brighter_side) > 0
        assert (float(brighter_side) > 0) == first


def test_vertex_normals_point_outwards():
    geometry = bumpy_ball(3)
    normals = vertex_normals(geometry.vertices, geometry.faces)
    assert float((normals * geometry.vertices).sum(1).min()) > 0
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(len(normals)))


def test_mip_levels_average_and_follow_the_distance():
    texture = torch.zeros(1, 64, 64)
    texture[:, ::2] = 1  # stripes of one texel
    pyramid = mip_pyramid(texture)
    uvs = torch.rand(40, 2, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(sample(pyramid, uvs, torch.ones(40)), torch.full((40, 1), 0.5))
    assert float(sample(pyramid, uvs, torch.zeros(40)).std()) > 0.2
    square = torch.tensor([[0.0, 0, 1], [8, 0, 1], [0, 8, 1]])
    faces = torch.tensor([[0, 1, 2]])
    level = face_mip_levels(square, faces, torch.tensor([[0.0, 0], [1, 0], [0, 1]]), faces, 64)
    assert float(level) == pytest.approx(3.0, abs=1e-4)
