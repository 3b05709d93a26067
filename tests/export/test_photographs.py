from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from shapes import mesh_of, pattern, photographs_of_pattern, sphere

from trellis.errors import InputError
from trellis.export import ExportOptions, export_mesh
from trellis.export.clean import CleanOptions
from trellis.export.photographs import Photographs, blend_photographs, calm_normals, to_linear, to_srgb
from trellis.export.pipeline import bake_texture
from trellis.export.surface import surface_of
from trellis.export.texels import texels_of
from trellis.export.unwrap import unwrap
from trellis.export.views import gaussian_views, surround
from trellis.renderers import mesh_raster
from trellis.renderers.cameras import orbit
from trellis.representations.gaussian import SH_DC, Gaussian


@pytest.fixture(scope="module")
def scene():
    ball = sphere(0.4, 4)
    atlas = unwrap(surface_of(mesh_of(ball.vertices, ball.faces)), 192)
    return atlas, texels_of(atlas, 192), photographs_of_pattern(atlas.surface), ball


def test_photographs_replace_the_base_only_where_they_look(scene):
    atlas, texels, photographs, _ = scene
    base = np.full((len(texels), 3), 0.1, dtype=np.float32)
    done = []
    result = blend_photographs(atlas.surface, texels, photographs, base, done.append)
    assert done == [1, 2, 3, 4, 5]
    well = result.share > 0.99
    assert 0.25 < well.mean() < 0.8
    assert np.sqrt(np.square(result.colors - pattern(texels.positions))[well].mean()) < 0.02
    # The five cameras stand in azimuths 0 to 160 degrees; the other side keeps its colour.
    behind = texels.normals @ np.array([np.sin(1.4 + np.pi), np.cos(1.4 + np.pi), 0]) > 0.97
    assert np.array_equal(result.colors[behind], base[behind]) and result.share[behind].max() == 0
    assert np.abs(result.gains - 1).max() < 0.01


def test_the_noise_of_triangles_does_not_choose_the_photograph():
    ball = sphere(0.4, 4)
    noise = np.random.default_rng(0).normal(0, 0.006, (len(ball.vertices), 1))
    atlas = unwrap(surface_of(mesh_of(ball.vertices * (1 + noise), ball.faces)), 192)
    normals = calm_normals(atlas.surface)
    texels = texels_of(atlas, 192, normals=normals)
    outward = texels.positions / np.linalg.norm(texels.positions, axis=1, keepdims=True)

    def off(normals: np.ndarray) -> float:
        return float(np.degrees(np.arccos((normals * outward).sum(axis=1).clip(-1, 1))).mean())

    assert np.abs(np.linalg.norm(normals, axis=1) - 1).max() < 1e-5
    assert np.abs(np.linalg.norm(texels.normals, axis=1) - 1).max() < 1e-5
    assert off(texels.normals) < 0.25 * off(texels_of(atlas, 192).normals)
    # Both sides of a chart's border agree.
    _, place = np.unique(atlas.vertices, axis=0, return_inverse=True)
    assert len(np.unique(np.column_stack([place.reshape(-1), normals]), axis=0)) == place.max() + 1


def test_exposures_are_matched(scene):
    atlas, texels, photographs, _ = scene
    gains = np.array([[1.0, 1.0, 1.0], [0.7, 0.75, 0.8], [1.3, 1.2, 1.2], [0.9, 1.0, 1.1], [1.25, 1.1, 1.0]])
    gains /= np.exp(np.log(gains).mean(axis=0))
    dimmed = [
        torch.from_numpy(to_srgb(to_linear(image.numpy()) * gain[:, None, None]).clip(0, 1)).float()
        for image, gain in zip(photographs.images, gains, strict=True)
    ]
    base = np.full((len(texels), 3), 0.5, dtype=np.float32)
    dim = Photographs(dimmed, photographs.cameras, photographs.alphas)
    result = blend_photographs(atlas.surface, texels, dim, base)
    assert np.abs(result.gains * gains - 1).max() < 0.02
    well = result.share > 0.99
    assert np.sqrt(np.square(result.colors - pattern(texels.positions))[well].mean()) < 0.02


def test_their_border_does_not_show(scene):
    atlas, texels, photographs, _ = scene
    base = np.full((len(texels), 3), 0.1, dtype=np.float32)
    result = blend_photographs(atlas.surface, texels, photographs, base)
    grid = np.full((192, 192), np.nan)
    grid[texels.rows, texels.columns] = result.share
    steps = np.abs(np.diff(grid, axis=0))
    assert np.nanpercentile(steps, 99) < 0.35 and np.nanmean(steps) < 0.03


def test_photographs_through_the_whole_export(scene):
    _, _, photographs, ball = scene
    options = ExportOptions(num_views=8, view_resolution=128, clean=CleanOptions(num_views=8, resolution=128))
    mesh = mesh_of(ball.vertices, ball.faces, np.full((len(ball.vertices), 3), 0.1))
    plain = export_mesh(mesh, None, 0.0, 128, options)
    seen = []
    asset = export_mesh(mesh, None, 0.0, 128, options, lambda *step: seen.append(step), photographs)
    assert seen[-1] == ("bake", 13, 13)
    changed = np.abs(asset.texture.astype(int) - plain.texture).max(axis=2) > 10
    assert 0.2 < changed.mean() < 0.9


def striped(points):
    """Eighteen dark and eighteen light ones from the middle of the ball to its rim."""
    return np.repeat(0.5 + 0.4 * np.sign(np.sin(280 * points[..., :1])), 3, axis=-1)


def views_of_stripes(atlas, cameras, side):
    """Photographs as Photographs.of takes them: drawn at twice the size and averaged."""
    vertices, faces = torch.from_numpy(atlas.vertices), torch.from_numpy(atlas.faces)
    views = []
    for k in range(len(cameras)):
        view = mesh_raster.render_mesh(vertices, faces, vertices, cameras[k].scaled(2 * side, 2 * side), 0,
                                       antialiased=False)  # fmt: skip
        pixels = np.concatenate([striped(view["attributes"].numpy()), view["mask"].numpy()], axis=-1)
        views.append(Image.fromarray((pixels * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BOX))
    return views


def test_stripes_that_a_small_view_loses_come_from_a_larger_one_with_the_same_camera(scene):
    atlas, _, photographs, _ = scene
    texels, camera = texels_of(atlas, 768), photographs.cameras[0].scaled(112, 112)
    base = np.full((len(texels), 3), 0.5, dtype=np.float32)
    contrast, error = [], []
    for side in (112, 672):
        photographs = Photographs.of(views_of_stripes(atlas, camera, side), camera)
        result = blend_photographs(atlas.surface, texels, photographs, base)
        well = result.share > 0.99
        contrast.append(result.colors[well, 0].std())
        error.append(np.abs(result.colors - striped(texels.positions))[well].mean())
    assert contrast[0] < 0.2 and contrast[1] > 0.3
    assert error[1] < 0.4 * error[0]


def test_a_texture_too_coarse_for_a_pattern_shows_its_mean_and_no_noise(scene):
    atlas, _, photographs, _ = scene
    texels, camera = texels_of(atlas, 48), photographs.cameras[0]
    base = np.full((len(texels), 3), 0.1, dtype=np.float32)
    fine = (np.indices((672, 672)) // 2).sum(axis=0) % 2 * 204 + 25
    opaque = np.asarray(views_of_stripes(atlas, camera, 672)[0])[..., 3:]
    view = Image.fromarray(np.concatenate([np.repeat(fine[..., None], 3, axis=-1), opaque], axis=-1).astype(np.uint8))
    result = blend_photographs(atlas.surface, texels, Photographs.of([view], camera), base)
    well = result.colors[result.share > 0.99]
    assert len(well) > 100 and abs(well.mean() - 0.5) < 0.02 and well.std() < 0.03


def test_linear_light_and_back():
    values = np.linspace(0, 1, 256)
    assert np.allclose(to_srgb(to_linear(values)), values, atol=1e-6)


def test_pictures_that_do_not_fit_their_cameras_are_refused(scene):
    photographs = scene[2]
    with pytest.raises(InputError, match="5 cameras"):
        Photographs(photographs.images[:3], photographs.cameras)
    with pytest.raises(InputError, match=r"Photograph 0 must be \[3, 256, 256\]"):
        Photographs([image[:, :100] for image in photographs.images], photographs.cameras)


def test_photographs_of_other_exposures_beat_splats_alone():
    """The texture against the true paint, from splats too few to hold its detail and with five photographs added."""
    ball = sphere(0.4, 4)
    points, _ = trimesh.sample.sample_surface(sphere(0.4, 5), 6_000, seed=0)
    gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1], mininum_kernel_size=0.0, scaling_activation="exp")
    gaussian.from_xyz(torch.from_numpy(np.asarray(points)).float())
    gaussian.from_features(((torch.from_numpy(fine_pattern(points)) - 0.5) / SH_DC).float()[:, None])
    gaussian.from_scaling(torch.full((len(points), 3), 0.012))
    gaussian.from_rotation(torch.tensor([[1.0, 0, 0, 0]]).repeat(len(points), 1))
    gaussian.from_opacity(torch.full((len(points), 1), 0.9))
    atlas = unwrap(surface_of(mesh_of(ball.vertices, ball.faces)), 256)
    texels = texels_of(atlas, 256)
    yaw = torch.tensor([0.0, 1.25, 2.5, 3.75, 5.0])
    cameras = orbit(yaw, torch.tensor([0.3, -0.3, 0.3, -0.3, 0.3]), 2.0, 40.0, 384)
    vertices, faces = torch.from_numpy(atlas.vertices), torch.from_numpy(atlas.faces)
    images = []
    for k, gain in enumerate((1.0, 0.8, 1.2, 1.1, 0.95)):
        view = mesh_raster.render_mesh(vertices, faces, vertices, cameras, k, antialiased=False)
        image = to_srgb(to_linear(fine_pattern(view["attributes"].numpy())) * gain).clip(0, 1)
        images.append(torch.from_numpy(image).float().permute(2, 0, 1))
    quiet = lambda *step: None  # noqa: E731
    psnr = []
    for photographs in (None, Photographs(images, cameras)):
        ring = surround(atlas.surface, 12, 192)
        views = gaussian_views(gaussian, ring)
        texture = bake_texture(atlas, ring, views, 256, ExportOptions(), quiet, photographs) / 255
        error = texture[texels.rows, texels.columns] - fine_pattern(texels.positions)
        psnr.append(-10 * np.log10(np.square(error)[np.abs(texels.positions[:, 2]) < 0.3].mean()))
    assert psnr[1] > psnr[0] + 8 and psnr[1] > 28


def fine_pattern(points):
    return 0.5 + 0.3 * np.sin(70 * np.asarray(points) + np.array([0, 1, 2]))
