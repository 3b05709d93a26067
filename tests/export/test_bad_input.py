"""What may come in: each leads to a sentence or to a sensible file, and an earlier file stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from shapes import mesh_of, sphere

from trellis.errors import InputError
from trellis.export import ExportOptions, export_files, export_mesh, mesh_health
from trellis.export import clean as clean_module
from trellis.export.clean import MAX_FACES, CleanOptions, reduced
from trellis.export.surface import Surface
from trellis.export.unwrap import UnwrapOptions
from trellis.representations.gaussian import Gaussian

QUICK = ExportOptions(num_views=8, view_resolution=96, clean=CleanOptions(num_views=8, resolution=96))


def splats(points: np.ndarray, opacity: float) -> Gaussian:
    gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1])
    gaussian.from_xyz(torch.from_numpy(points).float())
    gaussian.from_features(torch.zeros(len(points), 1, 3))
    gaussian.from_scaling(torch.full((len(points), 3), 0.02))
    gaussian.from_rotation(torch.tensor([[1.0, 0, 0, 0]]).repeat(len(points), 1))
    gaussian.from_opacity(torch.full((len(points), 1), opacity))
    return gaussian


@pytest.mark.parametrize(
    "mesh",
    [
        mesh_of(np.zeros((0, 3)), np.zeros((0, 3))),
        mesh_of(np.full((4, 3), np.nan), [[0, 1, 2], [1, 2, 3]]),
        mesh_of(np.zeros((4, 3)), [[0, 1, 2], [1, 2, 3]]),
        mesh_of([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]]),
        mesh_of(np.eye(3) * 1e20, [[0, 1, 2]]),
    ],
    ids=["empty", "nan", "one point", "on a line", "huge"],
)
def test_meshes_without_surface_are_refused_and_the_earlier_file_stays(mesh, tmp_path):
    (tmp_path / "asset.glb").write_bytes(b"before")
    with pytest.raises(InputError):
        export_files(tmp_path, export_mesh(mesh, None, options=QUICK, texture_size=64))
    assert (tmp_path / "asset.glb").read_bytes() == b"before"


def test_a_single_triangle_is_exported():
    health = mesh_health(export_mesh(mesh_of(np.eye(3) * 0.4, [[0, 1, 2]]), None, 0.0, 64, QUICK))
    assert health.faces == health.charts == 1 and health.uv_overlap == 0 and health.uv_coverage > 0.2


def test_splats_that_cannot_be_seen_give_the_neutral_colour(tmp_path):
    ball = sphere(0.4, 3)
    asset = export_mesh(mesh_of(ball.vertices, ball.faces), splats(ball.vertices, 1e-9), 0.0, 64, QUICK)
    assert np.ptp(asset.texture) == 0 and 100 < asset.texture[0, 0, 0] < 220
    export_files(tmp_path, asset, splats(ball.vertices, 1e-9), formats=("glb", "ply", "spz"))


def test_broken_splats_are_not_written(tmp_path):
    ball = sphere(0.4, 1)
    gaussian = splats(ball.vertices, 0.5)
    gaussian._xyz[3, 1] = float("nan")
    asset = export_mesh(mesh_of(ball.vertices, ball.faces), None, 0.0, 64, QUICK)
    (tmp_path / "asset.spz").write_bytes(b"before")
    with pytest.raises(InputError, match="Gaussian 3"):
        export_files(tmp_path, asset, gaussian, formats=("spz",))
    assert (tmp_path / "asset.spz").read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_slivers_and_points_among_the_faces():
    ball = sphere(0.4, 3)
    rng = np.random.default_rng(0)
    flat = np.sort(rng.integers(0, len(ball.vertices), (40, 3)), axis=1)
    flat[:, 2] = flat[:, 1]
    vertices = np.concatenate([ball.vertices, [[0, 0, 0.5], [1e-7, 0, 0.5], [0, 1e-7, 0.5]]])
    faces = np.concatenate([ball.faces, flat, [[len(ball.vertices) + k for k in range(3)]]])
    for limit in (60, 0):
        options = replace(QUICK, unwrap=UnwrapOptions(time_limit=limit))
        asset = export_mesh(mesh_of(vertices, faces), None, 0.0, 64, options)
        assert np.isfinite(asset.uvs).all() and mesh_health(asset).degenerate_faces == 0


def test_a_huge_mesh_is_thinned_before_anything_else():
    ball = sphere(0.4, 6)
    surface = Surface(ball.vertices.astype(np.float32), ball.faces.astype(np.int32), np.abs(ball.vertices) * 2)
    small = reduced(surface, 20_000)
    assert 4_000 < len(small.faces) <= 20_000
    solid = trimesh.Trimesh(small.vertices, small.faces, process=False)
    assert solid.volume == pytest.approx(ball.volume, rel=0.02)
    assert np.abs(small.colors - np.abs(small.vertices) * 2).max() < 0.02
    assert reduced(surface, MAX_FACES) is surface


def test_an_export_of_more_faces_than_the_bound_goes_on_with_fewer(monkeypatch):
    monkeypatch.setattr(clean_module, "MAX_FACES", 5_000)
    ball = sphere(0.4, 5)  # 20 480 faces, as 5 million are to the real bound
    asset = export_mesh(mesh_of(ball.vertices, ball.faces), None, 0.0, 64, QUICK)
    health = mesh_health(asset)
    assert 1_000 < health.faces <= 5_000 and health.non_manifold_edges == 0
