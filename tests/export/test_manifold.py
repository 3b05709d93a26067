from __future__ import annotations

import numpy as np
import pytest
import trimesh
from shapes import sphere

from trellis.export.manifold import make_manifold
from trellis.export.simplify import simplify
from trellis.export.solid import is_watertight
from trellis.export.surface import Surface
from trellis.export.topology import EdgeTable, flips_to_agree, pieces, position_ids


def surface(mesh: trimesh.Trimesh) -> Surface:
    return Surface(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))


def edges_of(result: Surface) -> EdgeTable:
    return EdgeTable.build(position_ids(result.vertices)[result.faces])


def volume(result: Surface) -> float:
    return trimesh.Trimesh(result.vertices, result.faces, process=False).volume


@pytest.fixture
def two_boxes() -> Surface:
    """Two cubes of side 0.4 that share one edge: four faces on it."""
    boxes = [trimesh.creation.box((0.4, 0.4, 0.4)).apply_translation(t) for t in ((0.2, 0.2, 0), (-0.2, -0.2, 0))]
    return surface(trimesh.util.concatenate(boxes))


def test_solids_that_touch_in_an_edge_come_apart(two_boxes):
    assert (edges_of(two_boxes).uses == 4).any()
    apart = make_manifold(two_boxes)
    assert is_watertight(apart) and len(apart.faces) == 24
    assert volume(apart) == pytest.approx(2 * 0.4**3, rel=1e-3)
    assert np.abs(apart.vertices.max(axis=0) - [0.4, 0.4, 0.2]).max() < 1e-4


def test_a_fin_of_one_face_goes_and_one_of_many_stays():
    ball = sphere(0.4, 3)
    a, b = ball.edges_unique[40]
    tip, side = 1.3 * ball.vertices[[a, b]].mean(axis=0), 1.3 * ball.vertices[b]
    vertices = np.concatenate([ball.vertices, [tip, side, 1.2 * side]]).astype(np.float32)
    fin = np.array([[a, b, 642], [b, 643, 642], [643, 644, 642]])
    closed = make_manifold(Surface(vertices, np.concatenate([ball.faces, fin[:1]]).astype(np.int32)))
    assert is_watertight(closed) and len(closed.faces) == 1280
    both = edges_of(make_manifold(Surface(vertices, np.concatenate([ball.faces, fin]).astype(np.int32))))
    assert both.uses.max() == 2 and (both.uses == 1).sum() == 5 and pieces(both)[0] == 2
    # A card of two faces elsewhere has no part in it.
    card = np.array([[2, 0, 0], [2, 1, 0], [2, 1, 1], [2, 0, 1]], np.float32)
    faces = np.concatenate([ball.faces, fin[:1], [[645, 646, 647], [645, 647, 648]]]).astype(np.int32)
    assert len(make_manifold(Surface(np.concatenate([vertices, card]), faces)).faces) == 1282


def test_a_pinch_whose_ends_hang_together_is_halved():
    # A ring of four tetrahedron-like sectors pinched along one edge inside a closed surface: glue two opposite edges
    # of a torus-like tube by moving their vertices together.
    tube = trimesh.creation.torus(0.3, 0.1, major_sections=12, minor_sections=8)
    inner = np.argsort(np.hypot(tube.vertices[:, 0], tube.vertices[:, 1]) + np.abs(tube.vertices[:, 2]))[:12]
    angle = np.arctan2(tube.vertices[inner, 1], tube.vertices[inner, 0])
    ring = inner[np.argsort(angle)]
    vertices = tube.vertices.copy()
    for a, b in ((ring[0], ring[6]), (ring[1], ring[5])):
        vertices[a] = vertices[b] = (vertices[a] + vertices[b]) / 2
    pinched = surface(trimesh.Trimesh(vertices, tube.faces, process=False))
    assert (edges_of(pinched).uses == 4).sum() == 1
    result = make_manifold(pinched)
    assert is_watertight(result) and volume(result) == pytest.approx(volume(pinched), rel=1e-3)


def test_colours_follow_and_sound_surfaces_are_left_alone(two_boxes):
    painted = Surface(two_boxes.vertices, two_boxes.faces, np.abs(two_boxes.vertices))
    apart = make_manifold(painted)
    assert np.allclose(apart.colors, np.abs(apart.vertices), atol=1e-3)
    ball = surface(sphere(0.4, 2))
    assert make_manifold(ball) is ball


def test_simplified_sponges_stay_closed_and_wound_alike():
    """Balls on a grid, joined by thin necks and touching: simplified to a few faces each, sheets meet everywhere."""
    from skimage.measure import marching_cubes

    axis = np.linspace(-0.5, 0.5, 65)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    field = np.cos(26 * x) + np.cos(26 * y) + np.cos(26 * z) + 0.9
    field[[0, -1]] = field[:, [0, -1]] = field[:, :, [0, -1]] = 1
    vertices, faces, _, _ = marching_cubes(field, 0.0, spacing=(1 / 64,) * 3)
    dense = Surface(vertices.astype(np.float32) - np.float32(0.5), faces.astype(np.int32))
    low = simplify(dense, target_faces=900)
    edges = edges_of(low)
    assert (edges.uses == 2).all() and not flips_to_agree(edges).any()
    assert len(low.faces) < 1.2 * 900
