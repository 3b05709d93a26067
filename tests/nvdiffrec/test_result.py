"""Written results: the files agree with the asset, with each other, and load again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from nvdiffrec_shapes import ball_views, bumpy_ball, patterned_material, ring, sky

from nvdiffrec.asset import Asset, asset_from_views, load_asset
from nvdiffrec.hdr import read_hdr
from nvdiffrec.optimise import RefineResult, ViewScore
from nvdiffrec.pictures import comparison, load_environment, relit_frames, write_picture, write_relit_turntable
from nvdiffrec.result import pbr_mesh, write_result
from nvdiffrec.view_files import load_views
from trellis.errors import InputError
from trellis.export.gltf import to_gltf_frame
from trellis.representations.mesh import MeshExtractResult

HDRI = sorted((Path(__file__).parents[2] / "assets" / "hdri").glob("*.hdr"))


@pytest.fixture(scope="module")
def asset() -> Asset:
    return Asset(bumpy_ball(2), patterned_material(), sky())


def test_a_written_result_reads_back(tmp_path, asset):
    views = ball_views(3)
    scores = tuple(ViewScore(name, 20.0, 15.0, 0.9, False) for name in views.names)
    result = RefineResult(asset, views.cameras, True, "Refining helped.", scores, scores)
    files = write_result(tmp_path, result, views)
    assert set(files) == {"mesh.glb", "transforms.json", "scores.json", "environment.hdr"}
    loaded = load_asset(tmp_path / "mesh.glb", texture_size=32)
    assert len(loaded.geometry.faces) == len(asset.geometry.faces)
    assert len(loaded.geometry.vertices) == len(asset.geometry.vertices)
    torch.testing.assert_close(loaded.material.base_color, asset.material.base_color, atol=0.01, rtol=0)
    np.testing.assert_allclose(read_hdr(tmp_path / "environment.hdr"), sky().permute(1, 2, 0), atol=3 / 256)
    assert json.loads((tmp_path / "scores.json").read_text())["views"][0]["after"]["iou"] == 0.9
    views.save(tmp_path)
    torch.testing.assert_close(load_views(tmp_path).cameras.extrinsics, views.cameras.extrinsics, atol=1e-5, rtol=1e-5)


def test_the_mesh_stands_in_the_gltf_frame_with_pbr_textures(asset):
    mesh = pbr_mesh(asset)
    np.testing.assert_allclose(mesh.bounds, _bounds(to_gltf_frame(asset.geometry.vertices.numpy())))
    channels = np.asarray(mesh.visual.material.metallicRoughnessTexture)
    assert abs(int(channels[0, 0, 1]) - 128) <= 1 and abs(int(channels[0, 0, 2]) - 26) <= 1


@pytest.mark.parametrize("file", HDRI, ids=lambda f: f.stem)
def test_an_asset_is_relit_under_each_environment(asset, file):
    frames = list(relit_frames(asset, load_environment(file), ring(2, 48)))
    assert len(frames) == 2 and frames[0].shape == (48, 48, 3)
    inside = frames[0][24, 24]
    assert 10 < inside.mean() < 250 and frames[0][0, 0].mean() == 255


def test_pictures_and_films_are_written(tmp_path, asset):
    views = ball_views(2)
    sheet = comparison(views, [(asset, views.cameras)] * 2, longest_side=32)
    assert sheet.shape == (96, 64, 3) and sheet[:32].std() > 10 and np.array_equal(sheet[32:64], sheet[64:])
    write_picture(tmp_path / "sheet.png", sheet)
    write_relit_turntable(tmp_path / "film.mp4", asset, HDRI[0], ring(2, 32))
    assert (tmp_path / "sheet.png").stat().st_size > 100 and (tmp_path / "film.mp4").stat().st_size > 100


def test_there_are_environments():
    assert len(HDRI) == 3


def test_a_bare_mesh_is_painted_from_the_photographs():
    views, ball = ball_views(6), bumpy_ball(3)
    asset = asset_from_views(MeshExtractResult(ball.vertices, ball.faces), views, texture_size=64)
    assert len(asset.geometry.vertices) == len(ball.vertices)
    assert float(asset.material.base_color.std()) > 0.05


def test_a_file_without_texture_is_refused(tmp_path):
    trimesh.creation.box().export(tmp_path / "box.glb")
    with pytest.raises(InputError, match="base colour texture"):
        load_asset(tmp_path / "box.glb")
    (tmp_path / "bad.glb").write_bytes(b"not a mesh")
    with pytest.raises(InputError, match="cannot be read"):
        load_asset(tmp_path / "bad.glb")


def _bounds(points: np.ndarray) -> np.ndarray:
    return np.stack([points.min(axis=0), points.max(axis=0)])
