from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import mesh_reference as reference
import pytest
import torch
from golden_io import assert_close

from trellis.errors import InputError
from trellis.renderers.cameras import orbit
from trellis.renderers.mesh_raster import (
    face_normal_image,
    interpolate,
    project,
    rasterize,
    render_mesh,
    warm_up,
)
from trellis.renderers.mesh_topology import face_table

SIZE = (40, 56)


def view(size: int = 64):
    return orbit(torch.tensor([0.4]), torch.tensor([0.3]), size=size)


def square(z: float = 2.0, scale: float = 10.0) -> tuple[torch.Tensor, torch.Tensor]:
    """An axis-aligned screen square from (4, 4), cut along a diagonal that passes through pixel centres."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]) * scale + 4
    return torch.cat([corners, torch.full((4, 1), z)], dim=1), torch.tensor([[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_raster_matches_the_reference(seed):
    screen, faces = reference.triangle_soup(60, *SIZE, seed=seed)
    raster = rasterize(screen, faces, *SIZE)
    ids, weights, depth = reference.rasterize(screen, faces, *SIZE)
    assert (raster.face_ids != ids).sum() <= 1  # a centre on an edge to within rounding
    same = raster.face_ids == ids
    assert_close(raster.barycentrics[same], weights[same].float())
    assert_close(raster.depth[same], depth[same].float())
    assert torch.equal(raster.mask, raster.face_ids >= 0)
    assert bool((raster.depth[~raster.mask] == 0).all()) and bool((raster.barycentrics[~raster.mask] == 0).all())


def test_small_triangles_far_from_the_image_origin_are_exact():
    size = 2048
    screen, faces = reference.triangle_soup(50, 8, 8)
    screen = screen + torch.tensor([2030.0, 2035.0, 0.0])
    raster = rasterize(screen, faces, size, size)
    shifted = screen.double() - torch.tensor([2016.0, 2016.0, 0.0], dtype=torch.float64)
    ids, weights, _ = reference.rasterize(shifted, faces, 32, 32)
    assert torch.equal(raster.face_ids[2016:, 2016:].long(), ids)
    assert_close(raster.barycentrics[2016:, 2016:], weights.float())


def test_shared_edges_leave_no_holes():
    screen, faces = square()
    raster = rasterize(screen, faces, 20, 20)
    assert int(raster.mask.sum()) == 100
    assert bool(raster.mask[4:14, 4:14].all())


def test_closed_surface_has_no_holes_at_any_resolution():
    vertices, faces = reference.icosphere(4)
    for size in (16, 61, 200):
        mask = render_mesh(vertices, faces, None, view(size), antialiased=False)["mask"][..., 0] > 0
        columns = torch.arange(size).expand(size, size)
        for row in torch.nonzero(mask.any(dim=1))[:, 0].tolist():
            inside = columns[row][mask[row]]
            assert int(inside.max() - inside.min()) + 1 == len(inside)


def test_of_two_faces_at_one_depth_the_first_is_seen():
    screen, faces = square()
    doubled = torch.cat([faces, faces])
    assert int(rasterize(screen, doubled, 20, 20).face_ids.max()) == 1


def test_faces_without_area_and_out_of_sight_are_not_drawn():
    screen, faces = square()
    degenerate = torch.tensor([[0, 0, 1], [2, 2, 2]])
    assert int(rasterize(screen, degenerate, 20, 20).mask.sum()) == 0
    line = screen.clone()
    line[:, 1] = line[:, 0]
    assert int(rasterize(line, faces, 20, 20).mask.sum()) == 0
    for behind in (-2.0, 0.0, 0.001):
        partly = screen.clone()
        partly[1, 2] = behind  # only the first face holds vertex 1
        assert rasterize(partly, faces, 20, 20).face_ids.unique().tolist() == [-1, 1]
    far = screen + torch.tensor([1e12, -1e20, 0.0])
    assert int(rasterize(far, faces, 20, 20).mask.sum()) == 0
    huge = (screen - torch.tensor([9.0, 9.0, 0.0])) * torch.tensor([1e9, 1e9, 1.0])
    assert bool(rasterize(huge, faces, 20, 20).mask.all())


def test_mesh_behind_the_camera_and_empty_mesh_render_as_nothing():
    vertices, faces = reference.icosphere(1)
    camera = view()
    behind = (vertices + 2 * camera.centers).requires_grad_()
    attributes = torch.rand(len(vertices), 3)
    for points, triangles, colors in (
        (behind, faces, attributes),
        (behind, faces[:0], attributes),
        (torch.zeros(0, 3, requires_grad=True), faces[:0], torch.zeros(0, 3)),
    ):
        images = render_mesh(points, triangles, colors, camera, normals=True)
        assert float(images["mask"].detach().sum()) == 0
        assert bool((images["normals"] == 0.5).all())
        assert bool((images["face_ids"] == -1).all())
        (images["mask"].sum() + images["attributes"].sum() + images["depth"].sum()).backward()
        assert points.grad.shape == points.shape and float(points.grad.abs().sum()) == 0
        points.grad = None


def test_projection_is_the_pinhole_of_the_conventions():
    camera = view(100)
    points = torch.cat([torch.zeros(1, 3), camera.centers, 2 * camera.centers])
    screen = project(points, camera.extrinsics[0], camera.intrinsics[0])
    assert_close(screen[0], torch.tensor([50.0, 50.0, 2.0]))
    assert bool(torch.isfinite(screen).all())
    assert_close(screen[1:, 2], torch.tensor([0.0, -2.0]))
    above = project(torch.tensor([[0.0, 0.0, 0.1]]), camera.extrinsics[0], camera.intrinsics[0])
    assert float(above[0, 1]) < 50  # up in the world is up in the image
    # A vertex at the projection of a pixel centre is seen at that pixel with weight one.
    assert_close(camera.intrinsics[0, :2, 2] - 0.5, torch.tensor([49.5, 49.5]))


def test_interpolation_and_its_gradients_match_autograd():
    screen, faces = reference.triangle_soup(40, *SIZE, seed=5)
    generator = torch.Generator().manual_seed(9)
    attributes = torch.rand(len(screen), 4, generator=generator)
    upstream = torch.rand(*SIZE, 4, generator=generator)
    raster = rasterize(screen, faces, *SIZE)

    ours = attributes.clone().requires_grad_(), screen.clone().requires_grad_()
    image = interpolate(*ours, faces, raster)
    image.backward(upstream)

    plain = attributes.double().requires_grad_(), screen.double().requires_grad_()
    ids = raster.face_ids.long()
    weights = reference.interpolation_weights(plain[1], faces, ids)
    expected = (weights.unsqueeze(-1) * plain[0][faces[ids.clamp(min=0)]]).sum(dim=2)
    expected.backward(upstream.double())

    assert_close(image, expected.float())
    assert_close(ours[0].grad, plain[0].grad.float())
    assert_close(ours[1].grad, plain[1].grad.float(), atol=1e-4, rtol=1e-3)


def test_interpolation_gradients_match_finite_differences():
    screen, faces = square()
    screen = screen + torch.tensor([[0.21, -0.13, 0.3], [0.4, 0.33, -0.4], [-0.27, 0.19, 0.2], [0.05, -0.4, 0.0]])
    attributes = torch.tensor([[0.1, 0.9], [0.5, -0.3], [1.2, 0.4], [-0.6, 0.2]])
    upstream = torch.rand(20, 20, 2, generator=torch.Generator().manual_seed(3)).double()
    raster = rasterize(screen, faces, 20, 20)

    def loss(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        # The reference weights in float64, for the faces that are seen: float32 differences would be mostly rounding.
        weights = reference.interpolation_weights(positions, faces, raster.face_ids.long())
        values = values.double()[faces[raster.face_ids.long().clamp(min=0)]]
        return ((weights.unsqueeze(-1) * values).sum(dim=2) * upstream).sum()

    inputs = attributes.clone().requires_grad_(), screen.clone().requires_grad_()
    interpolate(*inputs, faces, raster).backward(upstream.float())
    step = 1e-5
    for which, tensor in enumerate((attributes, screen)):
        numeric = torch.zeros_like(tensor)
        for index in range(tensor.numel()):
            values = [attributes.double(), screen.double()]
            ends = []
            for sign in (1, -1):
                values[which] = tensor.double().clone()
                values[which].view(-1)[index] += sign * step
                ends.append(loss(*values))
            numeric.view(-1)[index] = (ends[0] - ends[1]) / (2 * step)
        assert_close(inputs[which].grad, numeric, atol=1e-4, rtol=1e-3)


def test_attributes_with_their_own_indices():
    screen, faces = square()
    raster = rasterize(screen, faces, 20, 20)
    uvs = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    uv_faces = torch.tensor([[5, 0, 3], [1, 2, 4]])
    image = interpolate(uvs, screen, faces, raster, uv_faces)
    corners = uvs[uv_faces[raster.face_ids.long().clamp(min=0)]]
    expected = (raster.barycentrics.unsqueeze(-1) * corners).sum(dim=2)
    assert_close(image, expected)


def test_depth_is_the_distance_along_the_view_and_has_a_gradient():
    vertices, faces = reference.icosphere(3)
    camera = view()
    shift = torch.zeros((), requires_grad=True)
    moved = vertices + shift * camera.directions[0]
    depth = render_mesh(moved, faces, None, camera)["depth"][..., 0]
    middle = depth[32, 32]
    assert math.isclose(float(middle.detach()), 2 - 0.45, abs_tol=5e-3)
    middle.backward()
    assert math.isclose(float(shift.grad), 1.0, abs_tol=2e-2)


def test_normals_are_camera_space_colours():
    vertices, faces = reference.icosphere(3)
    camera = view()
    image = render_mesh(vertices, faces, None, camera, antialiased=False, normals=True)["normals"]
    assert_close(image[0, 0], torch.full((3,), 0.5))
    assert_close(image[32, 32], torch.tensor([0.5, 0.5, 1.0]), atol=0.06, rtol=0)  # towards the camera: n = (0, 0, -1)
    assert float(image[32, 14, 0]) > 0.8 and float(image[32, 49, 0]) < 0.2  # left of the sphere n.x < 0
    assert float(image[14, 32, 1]) > 0.8 and float(image[49, 32, 1]) < 0.2

    screen = project(vertices, camera.extrinsics[0], camera.intrinsics[0])
    raster = rasterize(screen, faces, 64, 64)
    assert_close(face_normal_image(vertices, faces, camera.extrinsics[0], raster), image)


def test_renders_are_the_same_from_several_threads():
    vertices, faces = reference.icosphere(3)
    colors = vertices + 0.5
    camera = view(96)

    def render(_: int) -> tuple[torch.Tensor, ...]:
        points = vertices.clone().requires_grad_()
        images = render_mesh(points, faces.clone(), colors, camera)
        (images["mask"].square().sum() + images["attributes"].square().sum()).backward()
        return images["mask"].detach(), images["attributes"].detach(), images["depth"].detach(), points.grad

    alone = render(0)
    with ThreadPoolExecutor(3) as pool:
        for together in pool.map(render, range(9)):
            for actual, expected in zip(together, alone, strict=True):
                assert torch.equal(actual, expected)


def test_reduced_precision_contexts_do_not_move_vertices():
    vertices, faces = reference.icosphere(2)
    camera = view()
    expected = project(vertices, camera.extrinsics[0], camera.intrinsics[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(project(vertices, camera.extrinsics[0], camera.intrinsics[0]), expected)
    with torch.inference_mode():
        assert float(render_mesh(vertices * 1.0, faces.clone(), None, camera)["mask"].sum()) > 0


def test_topology_lists_the_opposites_of_every_edge():
    faces = torch.tensor([[0, 1, 2], [2, 1, 3], [1, 2, 4], [5, 5, 0]])  # three faces at edge (1, 2), one degenerate
    edges = face_table(faces).edges
    listed = {
        tuple(pair): edges.opposites[edges.starts[e] : edges.starts[e + 1]].tolist()
        for e, pair in enumerate(edges.vertices.tolist())
    }
    assert listed[(1, 2)] == [0, 3, 4]
    assert listed[(0, 1)] == [2] and listed[(0, 2)] == [1] and listed[(1, 3)] == [2] and listed[(2, 4)] == [1]
    assert len(listed) == 8 and (5, 5) not in listed and listed[(0, 5)] == [5, 5]

    vertices, faces = reference.icosphere(3)
    edges = face_table(faces).edges
    assert len(edges.vertices) == len(faces) * 3 // 2 == len(vertices) + len(faces) - 2
    assert bool((edges.starts[1:] - edges.starts[:-1] == 2).all())


def test_topology_is_remembered_until_the_faces_change():
    faces = reference.icosphere(1)[1]
    table = face_table(faces)
    assert face_table(faces) is table
    faces[0] = faces[0].roll(1)
    assert face_table(faces) is not table


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, f: rasterize(s * torch.tensor([1, math.nan, 1]), f, 8, 8), "4 of 4 vertices have a position"),
        (lambda s, f: rasterize(s, f + 1, 8, 8), "refer to vertex 4, but there are only 4"),
        (lambda s, f: rasterize(s, f - 1, 8, 8), "must not be negative"),
        (lambda s, f: rasterize(s, f.float(), 8, 8), "must be integers"),
        (lambda s, f: rasterize(s, f[:, :2], 8, 8), "must be [F, 3]"),
        (lambda s, f: rasterize(s[:, :2], f, 8, 8), "must be [V, 3]"),
        (lambda s, f: rasterize(s, f, 0, 8), "at least one pixel"),
        (lambda s, f: rasterize(s, f, 8, 8, near=0.0), "near depth must be positive"),
        (lambda s, f: interpolate(s[:2], s, f, rasterize(s, f, 8, 8)), "refer to vertex 3"),
        (lambda s, f: interpolate(s, s, f, rasterize(s, f, 8, 8), f[:1]), "attribute indices"),
        (lambda s, f: interpolate(s[0], s, f, rasterize(s, f, 8, 8)), "must be [A, C]"),
        (lambda s, f: render_mesh(s * math.inf, f, None, view()), "not finite"),
        (lambda s, f: render_mesh(s, f, s[:2], view()), "Every vertex needs attributes"),
        (lambda s, f: project(s, view().extrinsics, view().intrinsics), "One camera is needed"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_sentence(call, message):
    with pytest.raises(InputError) as caught:
        call(*square())
    assert message in str(caught.value)


def test_warm_up_compiles_everything():
    warm_up()
