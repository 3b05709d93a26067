"""Training data against geometry that is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from packed_data import encoded, write_pack
from PIL import Image

from training.data import pack as pack_command
from training.data.deform import Warp
from training.data.objects import ObjectLibrary, linear_to_srgb, ragged_arange, srgb_to_linear
from training.data.packed import PackedMesh, unpack
from training.data.procedural import _surface, random_solid
from training.data.scenes import cut_out, random_views, render
from training.data.surface import SurfaceCache
from training.data.voxels import (
    FEATURES,
    INSIDE_WEIGHT,
    above,
    corner_targets,
    inside_weights,
    occupancy,
    rough_support,
    voxelise,
)
from training.latent_flow import cut_off, equal_rows, shuffled
from training.metrics import align_similarity, chamfer_and_f_score, grid_f1, grid_iou, relative_rotation_errors

RADIUS = 0.49  # the library scales the longest side to 2 * HALF_SIDE


@pytest.fixture(scope="module")
def sphere(tmp_path_factory) -> ObjectLibrary:
    """One fine sphere with an orange texture."""
    v, u = np.linspace(-math.pi / 2, math.pi / 2, 41)[:, None], np.linspace(-math.pi, math.pi, 81)[None]
    vertices, uvs, faces = _surface(np.cos(v) * np.cos(u) / 2, np.cos(v) * np.sin(u) / 2, np.sin(v) / 2 + 0 * u)
    texture = Image.new("RGB", (8, 8), (240, 120, 40))
    mesh = PackedMesh("sphere", vertices, uvs, faces, encoded(texture), True)
    return ObjectLibrary(write_pack(tmp_path_factory.mktemp("sphere") / "sphere.safetensors", [mesh]))


@pytest.fixture(scope="module")
def cache(sphere) -> SurfaceCache:
    return SurfaceCache(sphere, samples=20_000, views=16, size=128)


def instance(library: ObjectLibrary, count: int = 1):
    return library.instances(torch.zeros(count, dtype=torch.long), torch.eye(3).expand(count, 3, 3))


def test_rendered_points_project_back_to_their_pixels(sphere):
    generator = torch.Generator().manual_seed(0)
    instances = instance(sphere)
    views = random_views(instances, 3, 64, generator)
    rendering = render(sphere, instances, views, generator)
    covered = rendering.alpha[:, 0] > 0
    points = rendering.points.permute(0, 2, 3, 1)
    rotation, translation = views.extrinsics[:, :3, :3], views.extrinsics[:, None, None, :3, 3]
    camera = torch.einsum("nij,nhwj->nhwi", rotation, points) + translation
    column = camera[..., 0] / camera[..., 2] * views.intrinsics[:, 0, 0, None, None] + 32
    expected = (torch.arange(64) + 0.5).expand(3, 64, 64)
    assert (column - expected)[covered].abs().max() < 0.01
    assert (points[covered].norm(dim=1) - RADIUS).abs().max() < 0.005


def test_the_first_view_looks_from_azimuth_zero_and_views_fill_the_frame(sphere):
    generator = torch.Generator().manual_seed(1)
    instances = instance(sphere, 4)
    views = random_views(instances, 4, 64, generator)
    centre = -torch.einsum("nji,nj->ni", views.extrinsics[:, :3, :3], views.extrinsics[:, :3, 3])
    first = centre[::4]
    assert (first[:, 0].abs() < 1e-4).all() and (first[:, 1] > 0).all()
    rendering = render(sphere, instances, views, generator)
    width = rendering.alpha[:, 0].amax(1).sum(1)
    assert ((width > 64 / 1.16) & (width < 64 / 1.04)).all()


def test_outlines_are_uneven_in_half_of_the_views_and_only_near_the_edge(sphere):
    generator = torch.Generator().manual_seed(2)
    views = random_views(instance(sphere, 10), 4, 64, generator)
    rendering = render(sphere, instance(sphere, 10), views, generator)
    images = cut_out(rendering, generator)
    changed = (images != rendering.images).any(1, keepdim=True)
    uneven = changed.flatten(1).any(1)
    assert 10 <= uneven.sum() <= 30
    inside = -torch.nn.functional.max_pool2d(-rendering.alpha, 7, 1, 3)
    around = torch.nn.functional.max_pool2d(rendering.alpha, 7, 1, 3)
    assert not changed[(inside == 1) | (around == 0)].any()
    bright = images.sum(1, keepdim=True) > 0
    missing = (rendering.alpha == 1) & ~bright
    rim = (rendering.alpha == 0) & bright
    assert missing.any() and rim.any()
    assert not (missing | rim)[~uneven].any()


def test_signed_distance_of_a_sphere(sphere, cache):
    generator = torch.Generator().manual_seed(0)
    instances = instance(sphere)
    samples = cache.sample(instances, 20_000, generator)
    resolution = 32
    cubes = voxelise(samples, resolution).coords.long()
    targets = corner_targets(cubes, samples, cache, instances, resolution, thickness=0.0)
    corner = cubes[:, None, 1:] + torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)])
    expected = ((corner / resolution - 0.5).norm(dim=-1) - RADIUS) * resolution
    clear = expected.abs() > 0.3
    assert (targets.sdf.sign() == expected.sign())[clear].float().mean() > 0.995
    assert (targets.sdf - expected)[clear].abs().median() < 0.1


def test_what_is_inside_of_thin_parts_weighs_more_than_what_is_outside():
    resolution = 32
    x, y, z = torch.meshgrid(*[torch.arange(resolution)] * 3, indexing="ij")
    cubes = torch.stack([torch.zeros_like(x), x, y, z], -1).reshape(-1, 4)
    corner = cubes[:, None, 1:] + torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)])
    solid = torch.zeros(1, 1, 8, 8, 8, dtype=torch.bool)

    def weights(within):
        blocks = within.reshape(8, 4, 8, 4, 8, 4, 8).float().mean((1, 3, 5, 6), keepdim=True)
        near = ((blocks > 0) & (blocks < 1)).expand(8, 4, 8, 4, 8, 4, 1).flatten()  # the surface goes through theirs
        found = inside_weights(cubes[near], within[near], solid)
        assert (found[~within[near]] == 1).all()
        return found[within[near]]

    height = corner[..., 2]
    assert (weights((height >= 15) & (height <= 16)) > 1.5).all()
    rod = (corner[..., :2] >= 15).all(-1) & (corner[..., :2] <= 16).all(-1)
    assert (weights(rod) == INSIDE_WEIGHT).all()
    solid[..., :4] = True
    for top in range(17, 20):
        middle = weights(height <= top).reshape(32, 32, -1)[8:24, 8:24]  # the grid's end is the object's
        assert (middle == 1).all(), "a flat side of something thick"


def test_voxels_hold_the_samples_and_their_colour(sphere, cache):
    samples = cache.sample(instance(sphere), 20_000, torch.Generator().manual_seed(0))
    voxels = voxelise(samples, 16, slots=4)
    grid = occupancy(samples.points, 16)
    assert len(voxels.coords) == int(grid.sum())
    assert voxels.feats.shape[1] == FEATURES
    assert (voxels.points.abs() <= 0.5 + 1e-4).all()
    expected = torch.tensor([240, 120, 40]) / 255
    assert (voxels.colours - expected).abs().max() < 0.01


def test_a_support_says_which_voxels_there_are_and_empty_ones_know_the_surface_beside_them(sphere, cache):
    samples = cache.sample(instance(sphere, 2), 20_000, torch.Generator().manual_seed(0))
    grid = occupancy(samples.points, 16) > 0
    support = torch.nn.functional.max_pool3d(grid.float(), 3, 1, 1) > 0
    support[:, :, 8:] = False  # half of each sphere is missing
    voxels = voxelise(samples, 16, slots=4, support=support)
    index = tuple(torch.cat([voxels.coords[:, :1], voxels.coords[:, 1:]], 1).long().T)
    assert len(voxels.coords) == int(support.sum()) and support[:, 0][index].all()
    assert torch.equal(voxels.filled, grid[:, 0][index])
    exact = voxelise(samples, 16, slots=4)
    there = support[:, 0][tuple(exact.coords.long().T)]
    torch.testing.assert_close(voxels.feats[voxels.filled], exact.feats[there])
    torch.testing.assert_close(voxels.points[voxels.filled], exact.points[there])
    empty = ~voxels.filled
    centre = (voxels.coords[empty, 1:] + 0.5) / 16 - 0.5
    nearest = centre + voxels.feats[empty, :3] / 16
    assert (nearest.norm(dim=1) - RADIUS).abs().max() < 0.03, "within half a voxel of the sphere"
    assert (nearest - centre).norm(dim=1).max() < 3 / 16
    assert (voxels.looks[empty, 3:] - torch.tensor([240, 120, 40]) / 255).abs().max() < 0.01
    assert not voxels.feats[empty, 9:].any()


def test_a_rough_support_misses_some_voxels_adds_others_and_keeps_one_of_each_object(sphere, cache):
    samples = cache.sample(instance(sphere, 16), 20_000, torch.Generator().manual_seed(0))
    grid = occupancy(samples.points, 32)
    rough = rough_support(grid, torch.Generator().manual_seed(1))
    true, kept = grid.sum((1, 2, 3, 4)), (rough & (grid > 0)).sum((1, 2, 3, 4))
    added = rough.sum((1, 2, 3, 4)) - kept
    assert 0.8 < (kept / true).mean() < 0.95 and 0.5 < (added / true).mean() < 1
    assert (kept / true).min() < 0.8, "some objects are rougher than others"
    beside = torch.nn.functional.max_pool3d(grid, 3, 1, 1) > 0
    assert (rough & beside).sum() / rough.sum() > 0.8
    assert above(torch.zeros(3, 1, 4, 4, 4), 1.0).any((2, 3, 4)).all()


def test_of_large_objects_a_part_is_cut_off_and_small_ones_are_repeated():
    generator = torch.Generator().manual_seed(0)
    grid = torch.rand(3, 8, 8, 8, generator=generator) < torch.tensor([0.9, 0.1, 0.5])[:, None, None, None]
    coords = grid.nonzero().int()
    rows = cut_off(coords, 3, 128, generator)
    kept, owner = coords[rows], coords[rows, 0].long()
    sizes = grid.sum((1, 2, 3)).clamp(max=128)
    assert torch.equal(torch.bincount(owner, minlength=3), sizes) and (rows.diff() > 0).all()
    dropped = torch.ones(len(coords), dtype=torch.bool)
    dropped[rows] = False
    here, gone = kept[owner == 0, 1:].float(), coords[dropped & (coords[:, 0] == 0), 1:].float()
    normal = here.mean(0) - gone.mean(0)
    assert ((here @ normal).mean() - (gone @ normal).mean()) > 0
    some = shuffled(coords, 3, 128, generator)
    assert torch.equal(coords[some, 0].bincount(minlength=3), sizes) and len(some.unique()) == len(some)
    repeated, places = equal_rows(owner, 3, 128)
    assert torch.equal(repeated.flatten()[places], torch.arange(len(owner)))
    assert torch.equal(owner[repeated], torch.arange(3)[:, None].expand(3, 128))


def test_hidden_parts_are_not_sampled(tmp_path):
    """A small cube inside a big one must leave no samples."""
    box = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.5
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = np.array([f for a, b, c, d in quads for f in ([a, b, c], [a, c, d])])
    vertices = np.concatenate([box, box * 0.4])
    mesh = PackedMesh(
        "boxes", vertices, np.zeros((16, 2)), np.concatenate([faces, faces + 8]),
        encoded(Image.new("RGB", (4, 4))), False,
    )
    library = ObjectLibrary(write_pack(tmp_path / "boxes.safetensors", [mesh]))
    cache = SurfaceCache(library, samples=4000, views=24, size=128)
    samples = cache.sample(instance(library), 4000, torch.Generator().manual_seed(0))
    assert samples.points.abs().amax(-1).min() > 0.45
    points = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.3, 0.3], [0.6, 0.0, 0.0]])
    inside = cache.inside(instance(library), points, torch.zeros(3, dtype=torch.long))
    assert inside.tolist() == [True, True, False]


def test_procedural_solids_fit_the_unit_cube_and_repeat_with_their_seed():
    for seed in range(12):
        vertices, uvs, faces, texture, _ = random_solid(np.random.default_rng(seed))
        assert np.isfinite(vertices).all() and np.abs(vertices).max() <= 0.5 + 1e-9
        assert (uvs >= -1e-9).all() and (uvs <= 1 + 1e-9).all()
        assert faces.max() < len(vertices) <= 65536
        again = random_solid(np.random.default_rng(seed))
        assert np.array_equal(vertices, again[0]) and texture.tobytes() == again[3].tobytes()


def test_ragged_arange():
    index, owner = ragged_arange(torch.tensor([5, 0, 9]), torch.tensor([2, 0, 3]))
    assert index.tolist() == [5, 6, 9, 10, 11]
    assert owner.tolist() == [0, 0, 2, 2, 2]


def test_srgb_round_trip():
    x = torch.linspace(0, 1, 101)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(x)), x, atol=1e-5, rtol=0)


def test_metrics_on_known_cases():
    a = torch.zeros(8, 8, 8, dtype=torch.bool)
    b = a.clone()
    a[2, 2, 2] = b[2, 2, 3] = True
    assert grid_iou(a, a) == 1 and grid_iou(a, b) == 0 and grid_f1(a, b) == pytest.approx(1)
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    errors = relative_rotation_errors(torch.stack([torch.eye(3), quarter]), torch.eye(3).expand(2, 3, 3))
    assert errors.tolist() == pytest.approx([90.0], abs=1e-3)
    rng = np.random.default_rng(0)
    target = rng.normal(size=(400, 3)) * [1.0, 0.6, 0.3]
    c, s = math.cos(0.1), math.sin(0.1)
    source = 1.05 * target @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T + 0.03
    assert np.abs(align_similarity(source, target) - target).max() < 1e-6
    assert np.abs(align_similarity(source, target, matches=100) - target).max() < 1e-6


def test_chamfer_is_the_distance_of_surfaces_and_not_of_samples():
    rng = np.random.default_rng(0)
    plane, again = (np.c_[rng.random((40_000, 2)), np.zeros(40_000)] for _ in range(2))
    distance, score = chamfer_and_f_score(plane, again + [0, 0, 0.04], radius=0.05, queries=2_000)
    assert distance == pytest.approx(0.04, rel=0.01) and score == 1
    assert chamfer_and_f_score(plane, again, queries=2_000)[0] < 0.003
    assert chamfer_and_f_score(plane, again + [0, 0, 0.06], radius=0.05, queries=2_000)[1] == 0


def test_a_packed_file_takes_solids_and_unions_of_what_it_holds(tmp_path):
    rng = np.random.default_rng(3)
    meshes = []
    for k, colour in enumerate(((250, 10, 10), (10, 10, 250))):
        vertices, uvs, faces, _, _ = random_solid(rng)
        texture = Image.new("RGB", (8 << k, 16), colour)
        meshes.append(PackedMesh(f"solid-{k}", vertices, uvs, faces, encoded(texture), False))
    before = write_pack(tmp_path / "before.safetensors", meshes)
    for mesh, again in zip(meshes, unpack(before), strict=True):
        np.testing.assert_allclose(again.vertices, mesh.vertices, atol=1e-3)
        np.testing.assert_allclose(again.uvs, mesh.uvs, atol=1e-4)
        np.testing.assert_array_equal(again.faces, mesh.faces)
        assert (again.name, again.texture, again.smooth) == (mesh.name, mesh.texture, mesh.smooth)
    pack_command.main([str(before), "-o", str(tmp_path / "after.safetensors"), "--unions", "12"])
    library = ObjectLibrary(tmp_path / "after.safetensors")
    assert library.names == ["solid-0", "solid-1", *(f"union-{k}" for k in range(12))]
    for index, union in enumerate(unpack(tmp_path / "after.safetensors")[2:], start=2):
        low, high = union.vertices.min(0), union.vertices.max(0)
        np.testing.assert_allclose(low + high, 0, atol=2e-3)
        assert (high - low).max() == pytest.approx(1, abs=2e-3)
        # Each half keeps its colour, and is one of the two objects.
        uvs = torch.from_numpy(union.uvs[union.faces].mean(1)).float()
        albedo = linear_to_srgb(library.sample_albedo(torch.full((len(uvs),), index), uvs))
        red, blue = ((albedo - torch.tensor(c) / 255).abs().amax(1) < 0.02 for c in ((250, 10, 10), (10, 10, 250)))
        assert (red | blue).all()
        assert {int(red.sum()), int(blue.sum())} <= {
            len(meshes[0].faces), len(meshes[1].faces), 2 * len(meshes[0].faces), 2 * len(meshes[1].faces), 0
        }


def cube(tmp_path, colours=((200, 30, 30),)) -> ObjectLibrary:
    """One cube for each colour, of two large triangles a side."""
    box = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.5
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = np.array([f for a, b, c, d in quads for f in ([a, b, c], [a, c, d])])
    meshes = [
        PackedMesh(f"cube-{k}", box, np.full((8, 2), 0.5), faces, encoded(Image.new("RGB", (4, 4), c)), False)
        for k, c in enumerate(colours)
    ]
    return ObjectLibrary(write_pack(tmp_path / "cubes.safetensors", meshes))


def test_a_warp_has_the_jacobian_that_its_normals_go_by_and_folds_nothing():
    generator = torch.Generator().manual_seed(0)
    warp = Warp.random(64, 1.0, generator, torch.device("cpu"))
    warp = Warp(warp.frequency.double(), warp.amplitude.double(), warp.phase.double())
    owner = torch.arange(64).repeat_interleave(50)
    points = torch.rand(len(owner), 3, generator=generator, dtype=torch.float64) - 0.5
    steps = torch.eye(3, dtype=torch.float64) * 1e-5
    columns = [(warp.points(points + h, owner) - warp.points(points - h, owner)) / 2e-5 for h in steps]
    jacobian = torch.stack(columns, 2)
    assert (torch.linalg.det(jacobian) > 0).all()
    assert (jacobian - torch.eye(3)).norm(dim=(1, 2)).max() < 0.9
    normals = torch.nn.functional.normalize(torch.randn(points.shape, generator=generator, dtype=torch.float64), dim=1)
    expected = torch.einsum("vji,vj->vi", torch.linalg.inv(jacobian), normals)
    found = warp.normals(normals, points, owner)
    torch.testing.assert_close(*(torch.nn.functional.normalize(x, dim=1) for x in (found, expected)))
    there = warp.points(points, owner)
    assert (there - points).norm(dim=1).max() > 0.1, "deformed, not just copied"
    torch.testing.assert_close(warp.origins(there, owner), points, atol=1e-6, rtol=0)


def test_what_is_inside_of_a_deformed_object_is_known(sphere, cache):
    generator = torch.Generator().manual_seed(3)
    warp = Warp.random(4, 1.0, generator, torch.device("cpu"))
    instances = sphere.instances(torch.zeros(4, dtype=torch.long), torch.eye(3).expand(4, 3, 3), warp=warp)
    samples = cache.sample(instances, 5_000, generator)
    owner = torch.arange(4).repeat_interleave(5_000)
    for step, expected in ((-0.02, True), (0.02, False)):
        hidden = cache.inside(instances, (samples.points + step * samples.normals).flatten(0, 1), owner)
        assert (hidden == expected).float().mean() > 0.97
    few = (samples.points[:2] * 0.98).flatten(0, 1), owner[:10_000]
    assert torch.equal(cache.inside(instances.first(2), *few), cache.inside(instances, *few))


def test_a_share_of_the_warps_moves_nothing():
    warp = Warp.random(400, 0.25, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert 60 < int(warp.amplitude.any(2).any(1).sum()) < 140


def test_samples_lie_on_the_triangles_of_deformed_and_mirrored_instances_and_face_outwards(tmp_path):
    library, generator = cube(tmp_path), torch.Generator().manual_seed(2)
    cache = SurfaceCache(library, samples=3000, views=24, size=128)
    linear = torch.diag_embed(torch.tensor([[1.0, 1, 1], [-1, 1, 1], [1, 1, -0.6], [-0.7, -1, 1]]))
    warp = Warp.random(4, 1.0, generator, torch.device("cpu"))
    instances = library.instances(torch.zeros(4, dtype=torch.long), linear, warp=warp)
    assert (instances.vertices.unflatten(0, (4, 8)).abs().amax((1, 2)) - RADIUS).abs().max() < 1e-5
    samples = cache.sample(instances, 3000, generator)
    for k in range(4):
        corners = instances.vertices[instances.triangles[instances.owner == k]]
        flat = torch.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=1)
        flat = torch.nn.functional.normalize(flat, dim=1)
        height = ((samples.points[k][:, None] - corners[None, :, 0]) * flat).sum(2)
        parallel = (samples.normals[k] @ flat.T).abs()
        assert ((height.abs() < 1e-3) & (parallel > 1 - 1e-4)).any(1).all()
        from_inside = samples.points[k] - instances.vertices.unflatten(0, (4, 8))[k].mean(0)
        outwards = (samples.normals[k] * from_inside).sum(1) > 0
        assert outwards.float().mean() > 0.99, "but for some at the very edges"


def test_the_outermost_vertices_of_warped_objects_are_nearly_known(sphere):
    """Crops go by them: the box of a view must hold what is seen."""
    generator = torch.Generator().manual_seed(5)
    warp = Warp.random(64, 1.0, generator, torch.device("cpu"))
    instances = sphere.instances(torch.zeros(64, dtype=torch.long), torch.eye(3).expand(64, 3, 3), warp=warp)
    every = instances.vertices.unflatten(0, (64, -1))
    for axis in torch.eye(3):
        assert ((every @ axis).amax(1) - (instances.hull @ axis).amax(1)).max() < 0.02


def test_an_instance_wears_the_texture_it_is_given(tmp_path):
    library = cube(tmp_path, [(200, 30, 30), (20, 40, 220)])
    cache = SurfaceCache(library, samples=500, views=12, size=64)
    objects = torch.tensor([0, 0, 1])
    instances = library.instances(objects, torch.eye(3).expand(3, 3, 3), textures=torch.tensor([0, 1, 0]))
    generator = torch.Generator().manual_seed(0)
    samples = cache.sample(instances, 100, generator)
    seen = render(library, instances, random_views(instances, 1, 32, generator), generator)
    wanted = torch.tensor([[200, 30, 30], [20, 40, 220], [200, 30, 30]]) / 255
    assert (samples.colours - wanted[:, None]).abs().max() < 0.01
    for k in range(3):
        assert (seen.albedo[k][:, seen.alpha[k, 0] > 0] - wanted[k][:, None]).abs().max() < 0.01
