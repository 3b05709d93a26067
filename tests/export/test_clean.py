from __future__ import annotations

import numpy as np
import pytest
import trimesh
from shapes import mesh_of, sphere

from trellis.errors import InputError
from trellis.export.clean import CleanOptions, clean, drop_broken_faces, reduced
from trellis.export.hidden import cut_between
from trellis.export.holes import fill_small_holes
from trellis.export.solid import is_watertight, make_watertight, voxel_solid
from trellis.export.surface import Surface, surface_of
from trellis.export.topology import EdgeTable, boundary_loops, flips_to_agree, pieces
from trellis.export.views import surround
from trellis.export.visibility import count_in_torch, count_sightings

QUICK = CleanOptions(num_views=12, resolution=192)


def solid(surface) -> trimesh.Trimesh:
    return trimesh.Trimesh(surface.vertices, surface.faces, process=False)


def test_inner_wall_and_specks_go_and_the_outer_surface_stays_whole():
    outer, wall = sphere(0.4), sphere(0.36, inward=True)
    speck = sphere(0.004, 1, center=(0.45, 0.45, 0.45))
    together = trimesh.util.concatenate([outer, wall, speck])
    cleaned = clean(surface_of(mesh_of(together.vertices, together.faces)), QUICK)
    assert len(cleaned.faces) == len(outer.faces)
    assert solid(cleaned).is_watertight
    assert np.allclose(np.linalg.norm(cleaned.vertices, axis=1), 0.4, atol=1e-5)


def test_an_inner_wall_hanging_on_a_narrow_neck_goes_and_the_neck_is_closed():
    outer, wall = sphere(0.4), sphere(0.3, inward=True)
    hole_outer = np.linalg.norm(outer.triangles_center - [0, 0, 0.4], axis=1) > 0.05
    hole_wall = np.linalg.norm(wall.triangles_center - [0, 0, 0.3], axis=1) > 0.04
    outer.update_faces(hole_outer)
    wall.update_faces(hole_wall)
    rims = [max(trimesh.Trimesh(m.vertices, m.faces).outline().discrete, key=len)[:-1] for m in (outer, wall)]
    angle = [np.arctan2(rim[:, 1], rim[:, 0]) for rim in rims]
    rims = [rim[np.argsort(a)] for rim, a in zip(rims, angle, strict=True)]
    count = min(len(rim) for rim in rims)
    # The two rims differ in length: a strip of as many quads as the shorter has, then fans are left to hole filling.
    neck = np.concatenate([rims[0][:count], rims[1][:count]])
    strip = [[i, count + i, (i + 1) % count] for i in range(count)]
    strip += [[(i + 1) % count, count + i, count + (i + 1) % count] for i in range(count)]
    together = trimesh.util.concatenate([outer, wall, trimesh.Trimesh(neck, strip, process=False)])
    together.merge_vertices()
    cleaned = clean(surface_of(mesh_of(together.vertices, together.faces)), QUICK)
    deep = np.linalg.norm(cleaned.vertices, axis=1) < 0.31
    assert deep.mean() < 0.15
    assert len(cleaned.faces) > 0.95 * len(outer.faces)


def test_an_open_pocket_stays():
    tall = trimesh.creation.annulus(r_min=0.25, r_max=0.35, height=0.6, sections=64).subdivide().subdivide()
    cleaned = clean(surface_of(mesh_of(tall.vertices, tall.faces)), QUICK)
    assert len(cleaned.faces) == len(tall.faces)


def test_winding_becomes_consistent_and_outward():
    ball = sphere(0.4, 3)
    faces = ball.faces.copy()
    flipped = np.random.default_rng(0).random(len(faces)) < 0.6
    faces[flipped] = faces[flipped][:, ::-1]
    cleaned = clean(surface_of(mesh_of(ball.vertices, faces)), QUICK)
    assert solid(cleaned).is_winding_consistent
    assert solid(cleaned).volume == pytest.approx(ball.volume, rel=1e-5)


def test_holes_up_to_the_limit_are_closed():
    ball = sphere(0.4, 4)
    keep = np.linalg.norm(ball.triangles_center - [0, 0, 0.4], axis=1) > 0.1  # a hole of area 0.03
    opened = surface_of(mesh_of(ball.vertices, ball.faces[keep], np.full((len(ball.vertices), 3), 0.25)))
    closed = fill_small_holes(opened, 0.04)
    assert solid(closed).is_watertight and solid(closed).volume > 0
    assert np.allclose(closed.colors, 0.25)
    assert len(fill_small_holes(opened, 0.01).faces) == keep.sum()


def test_broken_faces_are_dropped():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [np.nan, 0, 0], [0, 0, 0], [0.5, 0, 0]], dtype=np.float32)
    faces = [[0, 1, 2], [1, 2, 0], [2, 1, 4], [0, 1, 3], [0, 0, 1], [0, 4, 1], [0, 5, 1]]
    kept = drop_broken_faces(surface_of(mesh_of(vertices, faces)))
    assert kept.faces.tolist() == [[0, 1, 2]] and np.isfinite(kept.vertices).all()


@pytest.mark.parametrize(
    ("vertices", "faces", "sentence"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3)), "The mesh is empty"),
        (np.full((3, 3), np.nan), [[0, 1, 2]], "nothing to export"),
        (np.zeros((3, 3)), [[0, 1, 2]], "nothing to export"),
        (np.eye(3), [[0, 1, 7]], "refers to vertex 7"),
        (np.eye(4), [[0, 1, 2]], r"vertices \[V, 3\]"),
    ],
)
def test_unusable_meshes_are_refused_in_a_sentence(vertices, faces, sentence):
    with pytest.raises(InputError, match=sentence):
        clean(surface_of(mesh_of(vertices, faces)), QUICK)


def test_edges_see_pieces_borders_and_disagreements():
    two = trimesh.util.concatenate([sphere(0.2, 2), sphere(0.2, 2, center=(1, 0, 0))])
    faces = two.faces[5:].astype(np.int32)
    faces[100] = faces[100][::-1]
    edges = EdgeTable.build(faces)
    assert pieces(edges)[0] == 2
    assert edges.flipped.sum() == 3
    faces = np.where(flips_to_agree(edges)[:, None], faces[:, ::-1], faces)
    edges = EdgeTable.build(faces)
    assert not edges.flipped.any()
    assert sum(len(loop) for loop in boundary_loops(edges)) == len(edges.boundary) > 0


def hourglass(waist: float = 0.1) -> trimesh.Trimesh:
    """A surface of revolution about z, narrow at z = 0."""
    z = np.linspace(-0.4, 0.4, 41)
    profile = np.stack([waist + 0.5 * z**2 / 0.16 * 0.4, z], axis=1)
    return trimesh.creation.revolve(profile, sections=48)


def test_the_cut_runs_through_the_waist():
    shape = surface_of(mesh_of(hourglass().vertices, hourglass().faces))
    height = shape.corner_positions().mean(axis=1)[:, 2]
    inner = cut_between(shape, EdgeTable.build(shape.faces), height > 0.3, height < -0.3)
    border = np.abs(height[inner].max()), np.abs(height[~inner].min())
    assert max(border) < 0.03
    assert inner[height < -0.05].all() and not inner[height > 0.05].any()


def test_every_outer_face_is_seen_and_no_inner_one():
    outer, wall = sphere(0.4, 6), sphere(0.39, 6, inward=True)  # faces far smaller than a pixel
    together = trimesh.util.concatenate([outer, wall])
    shape = surface_of(mesh_of(together.vertices, together.faces))
    sightings = count_sightings(shape, surround(shape, 24, 128))
    half = len(outer.faces)
    assert (sightings.front[:half] > 0).mean() > 0.999
    assert sightings.fraction[half:].max() == 0 and sightings.back.max() == 0
    assert 0.25 < sightings.fraction[:half].mean() < 0.5


def test_a_holed_self_touching_sheet_becomes_a_solid():
    ball = sphere(0.4, 3)
    rng = np.random.default_rng(0)
    torn = ball.faces[rng.random(len(ball.faces)) > 0.1]
    fins = np.array([[f[0], f[1], (f[2] + 40) % len(ball.vertices)] for f in torn[::60]])
    closed = make_watertight(surface_of(mesh_of(ball.vertices, np.concatenate([torn, fins]))))
    assert is_watertight(closed) and solid(closed).is_watertight
    assert solid(closed).volume == pytest.approx(ball.volume, rel=0.1)
    printable = CleanOptions(num_views=12, resolution=192, watertight=True)
    assert is_watertight(clean(surface_of(mesh_of(ball.vertices, torn)), printable))


def test_a_voxel_solid_keeps_shape_and_size():
    box = trimesh.creation.box((0.8, 0.4, 0.2)).subdivide_to_size(0.05)
    made = voxel_solid(Surface(box.vertices.astype(np.float32), box.faces.astype(np.int32)), 64)
    assert is_watertight(made)
    assert solid(made).volume == pytest.approx(box.volume, rel=0.12)
    assert np.allclose(solid(made).extents, box.extents, atol=1.5 * 0.8 / 64)


def test_needles_across_the_image_are_seen_as_the_general_rasteriser_sees_them():
    rng = np.random.default_rng(1)
    start, end = rng.uniform(-0.5, 0.5, (2, 300, 3))
    corners = np.stack([start, end, end + rng.normal(0, 0.01, (300, 3))], axis=1)
    needles = Surface(corners.reshape(-1, 3).astype(np.float32), np.arange(900, dtype=np.int32).reshape(-1, 3))
    cameras = surround(needles, 6, 256)
    expected, found = count_in_torch(needles, cameras, "cpu"), count_sightings(needles, cameras)
    assert expected.fraction.mean() > 0.3
    # Where two of them cross, the depths that decide are not the same to the last digit.
    assert (found.front == expected.front).mean() > 0.95 and (found.back == expected.back).mean() > 0.95


def test_a_huge_closed_mesh_stays_closed():
    # Cells larger than the wall: its two sides fall together here and there.
    outer, inner = sphere(0.4, 5), sphere(0.385, 5, inward=True)
    hollow = trimesh.util.concatenate([outer, inner])
    for most in (3_000, 8_000, 20_000):
        less = drop_broken_faces(reduced(surface_of(mesh_of(hollow.vertices, hollow.faces)), most))
        uses = EdgeTable.build(less.faces).uses
        assert 500 < len(less.faces) <= most and (uses % 2 == 0).all()


def test_a_soup_of_huge_triangles_is_looked_at_in_smaller_pictures(monkeypatch):
    seen = []

    def counted(surface, cameras, device):
        seen.append(cameras.height_width(0)[0])
        return count_sightings(surface, cameras, device)

    monkeypatch.setattr("trellis.export.clean.count_sightings", counted)
    corners = np.random.default_rng(0).uniform(-0.5, 0.5, (9000, 3)).astype(np.float32)
    clean(Surface(corners, np.arange(9000, dtype=np.int32).reshape(-1, 3)), QUICK)
    shells = trimesh.util.concatenate([sphere(0.1 * k, 3, inward=k % 2 == 0) for k in range(1, 5)])
    clean(surface_of(mesh_of(shells.vertices, shells.faces)), QUICK)
    assert 64 <= seen[0] < 192 and seen[1] == 192
