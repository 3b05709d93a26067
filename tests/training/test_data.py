"""Training data against geometry that is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from packed_data import encoded, write_pack
from PIL import Image

from training.data import pack as pack_command
from training.data.objects import ObjectLibrary, linear_to_srgb, ragged_arange, srgb_to_linear
from training.data.packed import PackedMesh, unpack
from training.data.procedural import _surface, random_solid
from training.data.scenes import random_views, render
from training.data.surface import SurfaceCache
from training.data.voxels import FEATURES, corner_targets, occupancy, voxelise
from training.metrics import align_similarity, grid_f1, grid_iou, relative_rotation_errors

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


def test_voxels_hold_the_samples_and_their_colour(sphere, cache):
    samples = cache.sample(instance(sphere), 20_000, torch.Generator().manual_seed(0))
    voxels = voxelise(samples, 16, slots=4)
    grid = occupancy(samples, 16)
    assert len(voxels.coords) == int(grid.sum())
    assert voxels.feats.shape[1] == FEATURES
    assert (voxels.points.abs() <= 0.5 + 1e-4).all()
    expected = torch.tensor([240, 120, 40]) / 255
    assert (voxels.colours - expected).abs().max() < 0.01


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
    inside = cache.inside(instance(library), torch.tensor([[[0.0, 0.0, 0.0], [0.3, 0.3, 0.3], [0.6, 0.0, 0.0]]]))
    assert inside.tolist() == [[True, True, False]]


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


def test_a_deformed_copy_is_another_shape_of_the_same_parts(tmp_path):
    rng = np.random.default_rng(4)
    vertices, uvs, faces, texture, smooth = random_solid(rng)
    mesh = PackedMesh("solid", vertices, uvs, faces, encoded(texture), smooth)
    before = write_pack(tmp_path / "before.safetensors", [mesh])
    pack_command.main([str(before), "-o", str(tmp_path / "after.safetensors"), "--variants", "8"])
    original, *copies = unpack(tmp_path / "after.safetensors")
    assert [copy.name for copy in copies] == [f"solid-variant-{k}" for k in range(8)]
    for copy in copies:
        np.testing.assert_array_equal(copy.faces, original.faces)
        np.testing.assert_array_equal(copy.uvs, original.uvs)
        assert copy.texture == original.texture and copy.smooth == original.smooth
        low, high = copy.vertices.min(0), copy.vertices.max(0)
        np.testing.assert_allclose(low + high, 0, atol=2e-3)
        assert (high - low).max() == pytest.approx(1, abs=2e-3)
        moved = np.linalg.norm(copy.vertices - original.vertices, axis=1)
        assert moved.max() > 0.02, "deformed, not just copied"
    shapes = {copy.vertices.tobytes() for copy in copies}
    assert len(shapes) == 8
    assert all(signed_volume(m) * signed_volume(original) > 0 for m in copies), "nothing is turned inside out"


def signed_volume(mesh: PackedMesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)
