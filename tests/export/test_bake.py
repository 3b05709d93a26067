from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from shapes import mesh_of, sphere

from trellis.export.bake import bake_views, fill_hidden
from trellis.export.gutter import dilate
from trellis.export.solve import TextureSystem
from trellis.export.surface import Surface, surface_of
from trellis.export.texels import Texels, paint, texels_of
from trellis.export.unwrap import unwrap
from trellis.export.views import Looker, View, surface_views, surround
from trellis.renderers import mesh_raster


def ball_atlas(size: int = 128):
    ball = sphere(0.4, 3)
    atlas = unwrap(surface_of(mesh_of(ball.vertices, ball.faces)), size)
    return atlas, texels_of(atlas, size)


def test_texels_lie_on_the_surface_where_their_coordinates_say():
    atlas, texels = ball_atlas()
    radii = np.linalg.norm(texels.positions, axis=1)
    assert radii.min() > 0.39 and radii.max() < 0.4001
    assert (np.einsum("tk,tk->t", texels.normals, texels.positions) > 0.38).all()
    # A vertex's own texel is at most a texel's diagonal away from it.
    grid = np.full((128, 128, 3), np.nan, dtype=np.float32)
    grid[texels.rows, texels.columns] = texels.positions
    columns, rows = (atlas.uvs * 128).T.astype(int)
    offsets = np.linalg.norm(grid[(127 - rows).clip(0, 127), columns.clip(0, 127)] - atlas.vertices, axis=1)
    assert np.nanmax(offsets) < 0.05 and np.isfinite(offsets).mean() > 0.3


def test_a_smooth_paint_is_recovered_from_pictures():
    atlas, texels = ball_atlas()
    cameras = surround(atlas.surface, 24, 256)

    def paint_at(points):
        return 0.5 + 0.5 * np.sin(6 * points + np.array([0, 1, 2]))

    pictures = []
    vertices, faces = torch.from_numpy(atlas.vertices), torch.from_numpy(atlas.faces)
    for k in range(len(cameras)):
        view = mesh_raster.render_mesh(vertices, faces, vertices, cameras, k, antialiased=False)
        color = torch.from_numpy(paint_at(view["attributes"].numpy())).float() * view["mask"]
        pictures.append(View(color, view["mask"][..., 0]))
    done = []
    colors, shown = bake_views(atlas, texels, cameras, iter(pictures), done.append)
    assert shown > 0.999 and done == list(range(1, 25))
    error = colors - paint_at(texels.positions)
    assert -10 * np.log10((error**2).mean()) > 38


def test_hidden_surfaces_do_not_take_what_stands_in_front():
    # A small red ball beside a large blue one hides a part of it in many pictures.
    big, small = sphere(0.4, 4), sphere(0.12, 3, center=(0, 0.7, 0))
    vertices = np.concatenate([big.vertices, small.vertices]).astype(np.float32)
    faces = np.concatenate([big.faces, small.faces + len(big.vertices)]).astype(np.int32)
    atlas = unwrap(Surface(vertices, faces), 256)
    texels = texels_of(atlas, 256)
    cameras = surround(atlas.surface, 16, 256)
    on_small = np.linalg.norm(atlas.vertices - [0, 0.7, 0], axis=1) < 0.2
    paint_of_vertex = np.where(on_small[:, None], [1.0, 0, 0], [0, 0, 1.0]).astype(np.float32)
    views = surface_views(Surface(atlas.vertices, atlas.faces, paint_of_vertex), cameras)
    result, _ = bake_views(atlas, texels, cameras, views)
    of_big = np.linalg.norm(texels.positions, axis=1) < 0.41
    assert result[of_big, 0].max() < 0.02 and result[~of_big, 2].max() < 0.02


def test_hidden_texels_take_the_nearest_colour_on_their_side():
    line = np.linspace(0, 1, 50, dtype=np.float32)
    positions = np.zeros((100, 3), dtype=np.float32)
    positions[:50, 0] = positions[50:, 0] = line
    positions[50:, 2] = -0.01  # the back of a thin plate
    normals = np.repeat(np.float32([[0, 0, 1], [0, 0, -1]]), 50, axis=0)
    texels = Texels(positions, normals, 16, np.arange(100), np.arange(100))
    colors = np.zeros((100, 3), dtype=np.float32)
    colors[:50, 0] = colors[50:, 1] = 1
    shown = np.ones(100, dtype=bool)
    shown[20:30] = shown[70:80] = False
    colors[~shown] = -1
    filled = fill_hidden(texels, colors, shown, radius=0.5)
    assert np.allclose(filled[20:30], [1, 0, 0], atol=1e-3) and np.allclose(filled[70:80], [0, 1, 0], atol=1e-3)


def test_gutters_continue_the_nearest_chart():
    texels = Texels(np.zeros((2, 3)), np.zeros((2, 3)), 8, np.array([2, 5]), np.array([2, 6]))
    image = paint(texels, np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32))
    assert image[0, 0].tolist() == [1, 0, 0] and image[7, 7].tolist() == [0, 1, 0]
    assert set(map(tuple, image.reshape(-1, 3).tolist())) == {(1, 0, 0), (0, 1, 0)}


@pytest.mark.parametrize(("shape", "share"), [((70, 150), 0.003), ((1, 9), 0.2), ((40, 33), 0.4)])
def test_every_unknown_pixel_takes_the_colour_of_a_nearest_known_one(shape, share):
    known = np.random.default_rng(3).random(shape) < share
    known[0, 5] = True
    places = np.stack(np.indices(shape), axis=-1)
    sources = dilate(np.where(known[..., None], places, -1), known)
    assert known[tuple(np.moveaxis(sources, -1, 0))].all()
    distances = np.linalg.norm(sources - places, axis=-1)
    assert np.allclose(distances, ndimage.distance_transform_edt(~known))


def test_splats_seen_through_gaps_do_not_count_and_offset_splats_do():
    atlas, texels = ball_atlas()
    cameras = surround(atlas.surface, 12, 128)
    looker = Looker(atlas.surface)
    rng = np.random.default_rng(0)

    def pictures(offset, gaps):
        for k in range(len(cameras)):
            hit = looker.look(cameras, k)
            through = torch.from_numpy(rng.random(hit.depth.shape) < gaps)
            color = torch.stack([~through, through, torch.zeros_like(through)], dim=-1).float()
            yield View(color, torch.ones_like(hit.depth), hit.depth + offset + 0.6 * through)

    colors, shown = bake_views(atlas, texels, cameras, pictures(0, 0.2))
    assert shown > 0.95 and (colors[:, 1] < 0.05).mean() > 0.99
    colors, shown = bake_views(atlas, texels, cameras, pictures(0.05, 0))
    assert shown > 0.95 and colors[:, 0].min() > 0.99


def rippled(points):
    """A paint that changes within a few texels."""
    return 0.5 + 0.4 * np.sin(60 * points + np.array([0, 1, 2]))


def test_solving_explains_an_unseen_picture_better_than_averaging():
    size = 96
    atlas, texels = ball_atlas(size)
    cameras = surround(atlas.surface, 24, 160)
    vertices, faces = torch.from_numpy(atlas.vertices), torch.from_numpy(atlas.faces)
    attributes = torch.from_numpy(np.concatenate([atlas.vertices, atlas.uvs], axis=1))

    def picture(views, k):
        view = mesh_raster.render_mesh(vertices, faces, attributes, views, k, antialiased=False)
        mask, values = view["mask"].numpy(), view["attributes"].numpy()
        return (rippled(values[..., :3]) * mask).astype(np.float32), mask[..., 0], values[..., 3:]

    system = TextureSystem(atlas, size)
    views = (View(*map(torch.from_numpy, picture(cameras, k)[:2])) for k in range(len(cameras)))
    colors, _ = bake_views(atlas, texels, cameras, views, system=system)
    averaged = paint(texels, colors)
    steps = []
    solved = system.solve(averaged, 24, steps.append)
    color, mask, uvs = picture(surround(atlas.surface, 7, 192), 3)
    lookup = torch.from_numpy(np.stack([2 * uvs[..., 0] - 1, 1 - 2 * uvs[..., 1]], axis=-1)[None])
    errors = []
    for texture in (averaged, solved):
        image = torch.from_numpy(texture).permute(2, 0, 1)[None]
        shown = torch.nn.functional.grid_sample(image, lookup, align_corners=False)[0].permute(1, 2, 0).numpy()
        errors.append(np.square(shown - color)[mask > 0].mean())
    assert errors[1] < 0.6 * errors[0] and 1 <= len(steps) <= 24
    assert np.array_equal(solved[~system.touched], averaged[~system.touched])


def test_the_stencil_is_that_of_the_sampled_pixels():
    atlas, _ = ball_atlas(32)
    cameras = surround(atlas.surface, 1, 48)
    looker = Looker(atlas.surface)
    hit = looker.look(cameras, 0)
    color = torch.rand(48, 48, 3, generator=torch.Generator().manual_seed(1))
    system = TextureSystem(atlas, 32)
    system.add(color, torch.ones(48, 48), hit, cameras.centers[0])
    # The same weights through autograd: the gradient of the weighted squared error at a random texture.
    texture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    uvs = looker.interpolate(hit, atlas.uvs)
    lookup = torch.stack([2 * uvs[..., 0] - 1, 1 - 2 * uvs[..., 1]], dim=-1)[None]
    shown = torch.nn.functional.grid_sample(texture, lookup, align_corners=False, padding_mode="border")[0]
    normals = atlas.surface.face_vectors()
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    face_ids = hit.face_ids.numpy()
    toward = cameras.centers[0].numpy() - atlas.vertices[atlas.faces[face_ids, 0]]
    cosine = np.einsum("hwk,hwk->hw", toward / np.linalg.norm(toward, axis=-1, keepdims=True), normals[face_ids])
    weight = np.where((face_ids >= 0) & (cosine >= 0.2), cosine**2, 0)
    error = shown - color.permute(2, 0, 1)
    (0.5 * torch.from_numpy(weight) * error**2).sum().backward()
    start = texture.detach()[0].permute(1, 2, 0).contiguous().numpy()
    assert np.allclose(system.gradient(start), texture.grad[0].permute(1, 2, 0).numpy(), atol=1e-4)
