from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
import trimesh
from scipy import ndimage
from shapes import mesh_of, sphere

from trellis.export import TexturedMesh, mesh_health
from trellis.export.surface import surface_of
from trellis.export.topology import EdgeTable, pieces
from trellis.export.unwrap import UnwrapOptions, unwrap
from trellis.renderers import mesh_raster


def unwrapped(mesh: trimesh.Trimesh, size: int = 128, options: UnwrapOptions | None = None):
    return unwrap(surface_of(mesh_of(mesh.vertices, mesh.faces)), size, options)


def textured(atlas, size: int = 128) -> TexturedMesh:
    return TexturedMesh(atlas.vertices, atlas.faces, atlas.uvs, atlas.normals, np.zeros((size, size, 3), np.uint8))


def test_a_sound_ball(tmp_path):
    (tmp_path / "a.glb").write_bytes(b"12345")
    atlas = unwrapped(sphere(0.4, 3))
    health = mesh_health(textured(atlas), tmp_path / "a.glb", 0.001)
    assert (health.faces, health.vertices, health.components) == (1280, 642, 1)
    assert health.watertight and health.concerns == []
    assert health.charts == atlas.num_charts and 0.4 < health.uv_coverage < 1
    density = 128 * np.sqrt(health.uv_coverage / (4 * np.pi * 0.16))
    assert health.texels_per_unit == pytest.approx(density, rel=0.02)
    assert json.loads(json.dumps(health.as_dict()))["file_bytes"] == 5 and health.hausdorff == 0.001


def test_faults_are_counted():
    two = trimesh.util.concatenate([sphere(0.2, 2), sphere(0.2, 2, center=(0.5, 0, 0))])
    faces = np.concatenate([two.faces[1:], [[two.faces[5][0], two.faces[5][1], 170], [9, 9, 12]]])
    faces[[50, 200]] = faces[[50, 200]][:, ::-1]
    mesh = TexturedMesh(
        two.vertices.astype(np.float32), faces.astype(np.int32), np.zeros((len(two.vertices), 2), np.float32) + 0.5,
        two.vertex_normals.astype(np.float32), np.zeros((16, 16, 3), np.uint8),
    )  # fmt: skip
    health = mesh_health(mesh)
    assert not health.watertight and health.non_manifold_edges >= 1 and health.boundary_edges >= 3
    assert health.degenerate_faces == 1 and 2 <= health.flipped_faces <= 4
    assert len(health.concerns) >= 4


def test_texels_claimed_twice_are_seen():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    vertices = np.concatenate([np.c_[square, np.zeros(4)], np.c_[square, np.ones(4)]]).astype(np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], np.int32)
    normals = np.tile(np.float32([0, 0, 1]), (8, 1))
    apart = np.concatenate([square * 0.4, square * 0.4 + 0.5])
    for uvs, expected in ((apart, 0.0), (np.concatenate([square * 0.4] * 2), 1.0)):
        health = mesh_health(TexturedMesh(vertices, faces, uvs, normals, np.zeros((64, 64, 3), np.uint8)))
        assert health.uv_overlap == pytest.approx(expected, abs=0.1)


def knot(noise: float = 0.0) -> trimesh.Trimesh:
    """A trefoil tube: every projection of it overlaps itself."""
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    path = np.stack([np.sin(t) + 2 * np.sin(2 * t), np.cos(t) - 2 * np.cos(2 * t), -np.sin(3 * t)], axis=1) * 0.14
    tangent = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.cross(tangent, [0.1, 0.2, 1.0])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(tangent, side)
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    ring = np.cos(angle)[None, :, None] * side[:, None] + np.sin(angle)[None, :, None] * other[:, None]
    vertices = (path[:, None] + 0.05 * ring).reshape(-1, 3)
    vertices += np.random.default_rng(0).normal(size=vertices.shape) * noise
    i, j = (grid.ravel() for grid in np.meshgrid(np.arange(120), np.arange(16), indexing="ij"))
    at = lambda a, b: (a % 120) * 16 + b % 16  # noqa: E731
    faces = np.concatenate([np.stack([at(i, j), at(i + 1, j), at(i + 1, j + 1)], 1),
                            np.stack([at(i, j), at(i + 1, j + 1), at(i, j + 1)], 1)])  # fmt: skip
    made = trimesh.Trimesh(vertices, faces, process=False)
    return made if made.volume > 0 else trimesh.Trimesh(vertices, faces[:, ::-1], process=False)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_the_fallback_never_overlaps_and_keeps_the_surface(noise):
    shape = knot(noise)
    atlas = unwrapped(shape, 256, UnwrapOptions(time_limit=0))
    assert atlas.method == "box"
    assert np.allclose(atlas.vertices[atlas.faces], shape.vertices[shape.faces], atol=1e-6)
    health = mesh_health(textured(atlas, 256))
    assert health.uv_overlap < 0.002 and health.uv_coverage > (0.15 if noise == 0 else 0.08)
    assert atlas.uvs.min() > 0 and atlas.uvs.max() < 1 and 4 < atlas.num_charts < len(shape.faces) / 3


def test_a_time_bound_that_is_too_short_leads_to_the_fallback():
    with pytest.warns(UserWarning, match="simpler charts"):
        atlas = unwrapped(knot(), 128, UnwrapOptions(time_limit=0.02))
    assert atlas.method == "box"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unwrapped(knot(), 128).method == "xatlas"


@pytest.mark.parametrize("limit", [60, 0])
def test_charts_keep_their_distance(limit):
    size = 512
    atlas = unwrapped(knot(), size, UnwrapOptions(time_limit=limit))
    labels = pieces(EdgeTable.build(atlas.faces))[1]
    screen = np.stack([atlas.uvs[:, 0] * size, (1 - atlas.uvs[:, 1]) * size, np.ones(len(atlas.uvs))], axis=1)
    ids = mesh_raster.rasterize(torch.from_numpy(screen).float(), torch.from_numpy(atlas.faces), size, size).face_ids
    image = np.where(ids.numpy() >= 0, labels[ids.numpy()] + 1, 0)
    # Within one texel less than the padding of 2, no two charts meet.
    largest = ndimage.maximum_filter(image, 2)
    smallest = ndimage.minimum_filter(np.where(image > 0, image, 10**6), 2)
    assert ((largest > 0) & (smallest < 10**6) & (largest != smallest)).sum() < 0.002 * (image > 0).sum()
