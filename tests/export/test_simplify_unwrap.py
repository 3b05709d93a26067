from __future__ import annotations

import numpy as np
import pytest
import trimesh
from shapes import mesh_of, patch_cube, sphere

from trellis.errors import InputError
from trellis.export.distance import nearest_distances, surface_distance
from trellis.export.folds import unfold, without_fins
from trellis.export.needles import flip_needles
from trellis.export.simplify import simplify
from trellis.export.surface import Surface, surface_of
from trellis.export.unwrap import parts_of, taubin_smooth, unwrap


def surface(mesh: trimesh.Trimesh):
    return surface_of(mesh_of(mesh.vertices, mesh.faces))


def inward_faces(star: Surface) -> int:
    """How many faces turn their back away from the origin."""
    return int((np.einsum("fk,fk->f", star.face_normals(), star.corner_positions().mean(axis=1)) < 0).sum())


def test_a_large_mesh_stays_closed_and_keeps_its_volume():
    ball = sphere(0.4, 7)  # 327 680 faces
    low = simplify(surface(ball), 0.95, max_faces=10_000)
    assert len(low.faces) <= 10_200
    solid = trimesh.Trimesh(low.vertices, low.faces, process=False)
    assert solid.is_watertight and solid.volume == pytest.approx(ball.volume, rel=2e-3)


def test_ratio_is_the_fraction_removed_and_small_meshes_are_left_alone():
    ball = surface(sphere(0.4, 4))  # 5120 faces
    assert len(simplify(ball, 0.75).faces) == pytest.approx(1280, rel=0.02)
    assert len(simplify(ball, 0.0).faces) == 5120
    assert len(simplify(ball, 0.999).faces) == pytest.approx(500, rel=0.05)
    assert len(simplify(surface(trimesh.creation.box()), 0.95).faces) == 12


def test_a_target_is_met_and_the_shape_kept():
    ball = surface(sphere(0.4, 5))
    low = simplify(ball, target_faces=2000)
    assert len(low.faces) == pytest.approx(2000, rel=0.02)
    apart = surface_distance(ball, low)
    assert apart.mean < 4e-4 and apart.hausdorff < 0.004  # regular flat triangles of this size leave the ball by 0.001
    assert surface_distance(ball, surface(sphere(0.42, 5))).hausdorff == pytest.approx(0.02, rel=0.05)


def test_distance_to_a_triangle_is_that_of_its_nearest_point():
    triangle = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=float)
    points = np.array([[0.2, 0.2, 0.5], [2, 0, 0], [-3, -4, 0], [1, 1, 0], [0.5, -1, 0]], dtype=float)
    expected = [0.5, 1, 5, 0.5**0.5, 1]
    first = np.zeros((5, 1), dtype=int)
    assert np.allclose(nearest_distances(points, triangle[None], first), expected)
    pair = np.stack([triangle + [0, 0, 9], triangle])
    assert np.allclose(nearest_distances(points, pair, np.tile([0, 1], (5, 1))), expected)


def test_distance_to_a_triangle_without_area_is_that_to_its_line():
    flat = np.array([[[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[1, 1, 1]] * 3], dtype=float)
    points, which = np.array([[1.5, 2, 0], [1, 1, 4]]), np.array([[0], [1]])
    assert np.allclose(nearest_distances(points, flat, which), [2, 3])


def test_colour_seams_do_not_open_cracks():
    low = simplify(surface_of(patch_cube(24)), 0.8)
    assert trimesh.Trimesh(low.vertices, low.faces, process=False).is_watertight
    assert len(low.faces) < 24 * 24 * 12 * 0.25


@pytest.mark.parametrize(
    "arguments", [{"ratio": 1.0}, {"ratio": -0.1}, {"ratio": 0.5, "max_faces": 3}, {"target_faces": 2}]
)
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(InputError):
        simplify(surface(sphere(0.4, 2)), **arguments)


def test_charts_fill_the_unit_square_without_overlap_and_keep_the_surface():
    ball = surface(sphere(0.4, 3))
    atlas = unwrap(ball, 256)
    assert atlas.uvs.min() >= 0 and atlas.uvs.max() <= 1 and len(atlas.faces) == len(ball.faces)
    assert np.array_equal(atlas.vertices[atlas.faces], ball.vertices[ball.faces])
    a, b, c = np.moveaxis(atlas.uvs[atlas.faces].astype(np.float64), 1, 0)
    signed = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    covered = np.abs(signed).sum()
    assert 0.4 < covered <= 1
    assert np.allclose(np.linalg.norm(atlas.normals, axis=1), 1, atol=1e-5)
    assert (np.einsum("vk,vk->v", atlas.normals, atlas.vertices) > 0).all()


def test_unfolding_hardly_stretches():
    """Needles of all shapes on flat sides, as simplification leaves them, unfold without being pulled along."""
    rng = np.random.default_rng(0)
    box = trimesh.creation.box((0.8, 0.6, 0.4)).subdivide_to_size(0.06)
    flat = (np.abs(np.abs(box.vertices) - [0.4, 0.3, 0.2]) < 1e-6).sum(axis=1) == 1
    inside = np.abs(np.abs(box.vertices) - [0.4, 0.3, 0.2]) > 1e-6
    box.vertices += np.where(flat[:, None] & inside, rng.uniform(-0.012, 0.012, box.vertices.shape), 0)
    atlas = unwrap(surface(box), 512)
    points, uvs = atlas.vertices[atlas.faces].astype(np.float64), atlas.uvs[atlas.faces].astype(np.float64)
    sides = [np.linalg.norm(c - np.roll(c, 1, axis=1), axis=2) for c in (points, uvs)]
    scale = sides[1] / sides[0]
    assert np.percentile(scale, 95) / np.percentile(scale, 5) < 1.2


def test_taubin_removes_noise_without_shrinking():
    ball = sphere(0.4, 4)
    noisy = ball.copy()
    noisy.vertices += np.random.default_rng(0).normal(size=noisy.vertices.shape) * 0.004
    smooth = taubin_smooth(surface(noisy), 10)
    radii = [np.linalg.norm(v, axis=1) for v in (noisy.vertices, smooth.vertices)]
    assert radii[1].std() < 0.5 * radii[0].std()
    assert radii[1].mean() == pytest.approx(0.4, rel=5e-3)


@pytest.mark.parametrize("size", [8, 100_000])
def test_texture_sizes_out_of_range_are_refused(size):
    with pytest.raises(InputError, match="texture size"):
        unwrap(surface(sphere(0.4, 1)), size)


def test_a_needle_gives_its_corner_to_its_neighbour():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0.5, 0, 0], [0.5, -1, 0], [0.5, 1, 0]], dtype=np.float32)
    faces = np.array([[0, 1, 2], [1, 0, 3], [0, 2, 4], [2, 1, 4]], dtype=np.int32)
    fixed = flip_needles(Surface(vertices, faces))
    areas = fixed.face_areas()
    assert (areas > 0).all() and areas.sum() == pytest.approx(1.0)
    assert (fixed.face_vectors()[:, 2] > 0).all() == (Surface(vertices, faces).face_vectors()[[1, 2, 3], 2] > 0).all()


def test_a_triangle_and_its_back_on_the_same_corners_cancel_out():
    ball = surface(sphere(0.4, 2))
    fin = np.array([[0, 5, 40], [40, 5, 0]], dtype=np.int32)
    cancelled = without_fins(Surface(ball.vertices, np.concatenate([fin, ball.faces, fin[:, [1, 2, 0]], fin[:1]])))
    assert np.array_equal(cancelled.faces[1:], ball.faces)  # three on one side and two on the other leave one
    assert set(cancelled.faces[0]) == {0, 5, 40}
    assert np.array_equal(cancelled.face_normals()[0], Surface(ball.vertices, fin[:1]).face_normals()[0])
    assert without_fins(ball) is ball
    sheet = Surface(ball.vertices, fin)
    assert without_fins(sheet) is sheet


def test_folds_that_show_are_smoothed_out_and_all_else_stays():
    ball = surface(sphere(0.4, 3))
    toward = ball.vertices[ball.faces[(ball.faces == 20).any(axis=1)]].reshape(-1, 3)
    neighbour = toward[np.linalg.norm(toward - ball.vertices[20], axis=1).argmax()]
    folded = Surface(ball.vertices.copy(), ball.faces)
    folded.vertices[20] += 1.8 * (neighbour - ball.vertices[20])  # beyond the faces on the other side
    folded.vertices[20] *= 0.41 / np.linalg.norm(folded.vertices[20])
    mended = unfold(folded)
    assert inward_faces(folded) > 0 and inward_faces(mended) == 0
    still = np.ones(len(ball.vertices), dtype=bool)
    still[20] = False
    still[ball.faces[(ball.faces == 20).any(axis=1)]] = False
    assert np.array_equal(mended.vertices[still], ball.vertices[still])
    assert np.linalg.norm(mended.vertices, axis=1).min() > 0.38


def test_an_open_sheet_is_not_smoothed():
    cap = surface(sphere(0.4, 3))
    cap = cap.select_faces(cap.corner_positions()[:, :, 2].mean(axis=1) > 0.2)
    assert np.array_equal(unfold(cap).vertices, cap.vertices)


def test_parts_that_are_cut_on_cores_of_their_own_make_one_atlas():
    ball = surface(sphere(0.4, 5))  # 20 480 faces
    parts = parts_of(ball)
    assert np.bincount(parts).tolist() == [2560] * 8
    atlas = unwrap(ball, 512)
    assert atlas.method == "xatlas" and len(atlas.faces) == len(ball.faces)
    assert atlas.num_charts <= 40
    whole, made = (np.sort(Surface(s.vertices, s.faces).face_areas()) for s in (ball, atlas))
    assert np.allclose(whole, made)
    assert np.array_equal(np.unique(atlas.vertices, axis=0), np.unique(ball.vertices, axis=0))
    assert set(parts_of(surface(sphere(0.4, 2)))) == {0}


def test_a_soup_of_triangles_is_not_left_to_xatlas():
    places = np.random.default_rng(0).uniform(-0.5, 0.5, (1100, 1, 3))
    corners = (places + 0.01 * np.eye(3)).reshape(-1, 3).astype(np.float32)
    atlas = unwrap(Surface(corners, np.arange(3300, dtype=np.int32).reshape(-1, 3)), 512)
    assert atlas.method == "box" and atlas.num_charts == 1100


def test_corners_beside_a_hub_of_many_faces_stay():
    angle = np.linspace(0, 2 * np.pi, 800, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle), 0.02 * np.cos(400 * angle)], axis=1)
    vertices = np.concatenate([ring, [[0, 0, 0.5], [0, 0, -0.5]]]).astype(np.float32)
    a, b = np.arange(800), np.roll(np.arange(800), -1)
    faces = np.concatenate([np.stack([a, b, np.full(800, 800)], 1), np.stack([b, a, np.full(800, 801)], 1)])
    faces[::7] = faces[::7, ::-1]  # these show their backs
    cone = Surface(vertices, faces.astype(np.int32))
    assert np.array_equal(unfold(cone).vertices, vertices)
