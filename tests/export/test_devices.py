"""Export where the decode is: what runs on a GPU, in torch and Triton, against the kernels of the CPU, by value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_devices import on_gpu
from shapes import mesh_of, patch_cube, sphere

from trellis import backends
from trellis.export import trust
from trellis.export.bake import SeenColors, gather_in_torch
from trellis.export.pipeline import ExportOptions, export_mesh
from trellis.export.solve import TextureSystem, accumulate_in_torch
from trellis.export.surface import Surface, surface_of
from trellis.export.texels import texels_of
from trellis.export.trust import judge, judge_in_torch
from trellis.export.unwrap import unwrap
from trellis.export.views import Looker, View, surround
from trellis.export.visibility import count_in_torch, count_sightings

PLACES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, on_gpu])]


def two_walls() -> Surface:
    """A dented ball with a smaller one inside and a sheet beside it: hidden, slanted, turned and tiny faces."""
    outer, inner = sphere(0.4, 4), sphere(0.3, 3, inward=True)
    dented = outer.vertices * (1 - 0.5 * np.exp(-20 * np.square(outer.vertices - [0.4, 0, 0]).sum(1)))[:, None]
    sheet = np.array([[-0.5, -0.5, 0.45], [0.1, -0.5, 0.45], [-0.5, 0.1, 0.5]])
    vertices = np.concatenate([dented, inner.vertices, sheet]).astype(np.float32)
    faces = [outer.faces, inner.faces + len(outer.vertices), [np.arange(3) + len(vertices) - 3]]
    return Surface(vertices, np.concatenate(faces).astype(np.int32))


@pytest.mark.parametrize("device", PLACES)
def test_faces_are_seen_as_often_in_torch(device):
    surface = two_walls()
    cameras = surround(surface, 12, 96)  # most faces are smaller than a pixel
    expected, found = count_sightings(surface, cameras), count_in_torch(surface, cameras, device)
    assert found.num_views == 12 and (expected.fraction > 0).mean() > 0.5
    for a, b in ((found.front, expected.front), (found.back, expected.back)):
        assert (a == b).mean() > 0.99 and np.abs(a - b).max() <= 1  # a pixel centre on an edge may fall to either side
    # Inner walls are seen in no way by either.
    assert ((found.fraction > 0) == (expected.fraction > 0)).mean() > 0.999


def looked_at() -> tuple:
    """An atlas, and per camera a picture with noise, holes and wrong depths, with what the camera sees."""
    ball = two_walls()
    atlas = unwrap(surface_of(mesh_of(ball.vertices, ball.faces)), 96)
    cameras = surround(atlas.surface, 5, 80)
    generator = torch.Generator().manual_seed(0)
    views = []
    for k in range(len(cameras)):
        hit = Looker(atlas.surface).look(cameras, k)
        depth = hit.depth + 0.08 * torch.randn(80, 80, generator=generator)
        views.append(View(torch.rand(80, 80, 3, generator=generator), torch.rand(80, 80, generator=generator), depth))
    return atlas, cameras, views


@pytest.mark.parametrize("device", PLACES)
def test_pictures_are_judged_and_gathered_alike_in_torch(device):
    atlas, cameras, views = looked_at()
    texels, radius = texels_of(atlas, 96), atlas.surface.bounding_sphere()[1]
    normals = torch.from_numpy(atlas.surface.face_normals())
    expected, system = SeenColors(texels), TextureSystem(atlas, 96)
    sums, weights = torch.zeros(len(texels), 3, device=device), torch.zeros(len(texels), device=device)
    entries = torch.zeros(96, 96, 8, device=device)
    for k, view in enumerate(views):
        hit = Looker(atlas.surface).look(cameras, k)
        trusted, depth = judge(view, hit, normals, radius)
        here = [t.to(device) for t in (hit.face_ids, hit.depth, normals, view.alpha, view.depth)]
        found = judge_in_torch(*here, 1 / (trust._DEPTH_SPREAD * radius))
        torch.testing.assert_close(found[0].cpu(), trusted, atol=1e-6, rtol=1e-4)
        assert torch.equal(found[1].cpu(), depth) and 0.05 < (trusted > 0.01).float().mean() < 0.9

        expected.add(cameras, k, view.color, trusted, depth, 0.01)
        lens = cameras.extrinsics[k], cameras.intrinsics[k], cameras.centers[k]
        points = torch.from_numpy(texels.positions), torch.from_numpy(texels.normals)
        tensors = [t.to(device) for t in (*points, *lens, view.color, trusted, depth)]
        gather_in_torch(*tensors, 0.01, sums, weights)

        system.add(view.color, trusted, hit, cameras.centers[k])
        shown = hit.face_ids, hit.barycentrics, *system._surface, cameras.centers[k], view.color, trusted
        accumulate_in_torch(*(t.to(device) for t in shown), entries)
    assert (expected.weights > 0).float().mean() > 0.3
    same = (weights.cpu() - expected.weights).abs() <= 1e-5 + 1e-3 * expected.weights
    assert same.float().mean() > 0.999  # a texel on the limit of the depth test may fall to either side
    torch.testing.assert_close(sums.cpu()[same], expected.sums[same], atol=2e-5, rtol=1e-3)
    assert (system._entries[..., 0] > 0).mean() > 0.2
    torch.testing.assert_close(entries.cpu(), torch.from_numpy(system._entries), atol=2e-5, rtol=1e-3)


def test_a_picture_fills_the_smallest_texture():
    atlas, cameras, views = looked_at()
    system, entries = TextureSystem(atlas, 2), torch.zeros(2, 2, 8)
    hit = Looker(atlas.surface).look(cameras, 0)
    shown = views[0].color, torch.ones(80, 80), hit, cameras.centers[0]
    system.add(*shown)
    accumulate_in_torch(hit.face_ids, hit.barycentrics, *system._surface, shown[3], shown[0], shown[1], entries)
    torch.testing.assert_close(entries, torch.from_numpy(system._entries), atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
@on_gpu
def test_an_export_on_a_gpu_is_that_of_the_cpu():
    cube = patch_cube()
    cube.vertices, cube.faces, cube.vertex_attrs = (t.cuda() for t in (cube.vertices, cube.faces, cube.vertex_attrs))
    options = ExportOptions(num_views=12, view_resolution=192)
    expected = export_mesh(cube, simplify=0.5, texture_size=128, options=options, device="cpu")
    found = export_mesh(cube, simplify=0.5, texture_size=128, options=options)
    assert np.array_equal(found.faces, expected.faces) and np.allclose(found.vertices, expected.vertices, atol=1e-6)
    apart = np.abs(found.texture.astype(int) - expected.texture)
    assert apart.mean() < 0.5 and (apart > 8).mean() < 0.01


@pytest.mark.gpu
@on_gpu
def test_a_gpu_without_its_own_rasteriser_exports_by_the_cpu():
    before = {need: candidate.name for need, candidate in backends.used("cuda").items()}
    backends.choose("cuda", **{**before, "mesh_rasterisation": "numba", "gaussian_splatting": "numba"})
    try:
        asset = export_mesh(patch_cube(4), simplify=0.0, texture_size=64, device="cuda")
    finally:
        backends.choose("cuda", **before)
    assert asset.texture.std() > 10
