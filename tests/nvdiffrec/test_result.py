"""Written results: the files agree with the asset, with each other, and load again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from nvdiffrec_shapes import ball_views, bumpy_ball, patterned_material, ring, sky

from nvdiffrec.asset import Asset, asset_from_views, plain_material
from nvdiffrec.asset_files import load_asset
from nvdiffrec.finish import finish
from nvdiffrec.hdr import read_hdr
from nvdiffrec.material import Material
from nvdiffrec.optimise import RefineResult, ViewScore
from nvdiffrec.pictures import (
    comparison,
    load_environment,
    relit_frames,
    renders,
    write_picture,
    write_relit_turntable,
)
from nvdiffrec.result import pbr_mesh, write_result
from nvdiffrec.view_files import load_views
from trellis.errors import InputError
from trellis.export.frame import to_gltf_frame
from trellis.export.gltf import write_glb
from trellis.export.texels import texels_of
from trellis.renderers.cameras import orbit
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


def test_every_map_of_a_file_is_read(tmp_path):
    normal = torch.zeros(3, 32, 32)
    normal[0], normal[2] = 0.3, 1
    pattern = patterned_material()
    pattern.orm[0, :16], pattern.orm[1, 16:] = 0.2, 0.8
    write_glb(tmp_path / "full.glb", pbr_mesh(Asset(bumpy_ball(2), replace(pattern, normal=normal))))
    material = load_asset(tmp_path / "full.glb", texture_size=32).material
    torch.testing.assert_close(material.orm, pattern.orm, atol=0.01, rtol=0)
    torch.testing.assert_close(
        torch.nn.functional.normalize(material.normal, dim=0), torch.nn.functional.normalize(normal, dim=0),
        atol=0.02, rtol=0,
    )  # fmt: skip


def test_factors_count_where_there_is_no_map(tmp_path):
    mesh = pbr_mesh(Asset(bumpy_ball(2), patterned_material()))
    mesh.visual.material = trimesh.visual.material.PBRMaterial(
        baseColorFactor=[128, 64, 255, 255], roughnessFactor=0.4, metallicFactor=0.9
    )
    mesh.export(tmp_path / "plain.glb")
    material = load_asset(tmp_path / "plain.glb", texture_size=16).material
    torch.testing.assert_close(
        material.base_color[:, 0, 0], torch.tensor([128, 64, 255]) / 255, atol=0.01, rtol=0
    )
    torch.testing.assert_close(material.orm[:, 3, 3], torch.tensor([0.4, 0.9]), atol=0.01, rtol=0)


def test_a_mesh_without_texture_coordinates_takes_its_vertex_colours(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    ball.visual.vertex_colors = np.where(ball.vertices[:, :1] > 0, [[250, 20, 20, 255]], [[20, 20, 250, 255]])
    ball.export(tmp_path / "ball.glb")
    asset = load_asset(tmp_path / "ball.glb", texture_size=64)
    _, right = pictures_from_both_sides(asset)
    assert right[0] > 200 > 60 > right[2]


def test_a_dense_mesh_is_simplified_and_keeps_its_colours(tmp_path):
    dense = Asset(bumpy_ball(5), patterned_material())
    write_glb(tmp_path / "dense.glb", pbr_mesh(dense))
    slim = load_asset(tmp_path / "dense.glb", texture_size=128, max_faces=2000)
    assert len(slim.geometry.faces) <= 2040 < len(dense.geometry.faces)
    same = [renders(asset, ring(3, 96)) for asset in (dense, slim)]
    assert np.abs(np.stack(same[0]).astype(float) - np.stack(same[1])).mean() < 4
    torch.testing.assert_close(
        slim.material.orm.mean(dim=(1, 2)), dense.material.orm.mean(dim=(1, 2)), atol=3e-3, rtol=0
    )


def test_files_that_hold_no_asset_are_refused(tmp_path):
    (tmp_path / "bad.glb").write_bytes(b"not a mesh")
    with pytest.raises(InputError, match="cannot be read"):
        load_asset(tmp_path / "bad.glb")
    with pytest.raises(InputError, match="cannot be read"):
        load_asset(tmp_path / "none.glb")
    broken = trimesh.creation.box()
    broken.vertices[0] = np.nan
    broken.export(tmp_path / "nan.glb")
    with pytest.raises(InputError, match="not finite"):
        load_asset(tmp_path / "nan.glb")
    write_glb(tmp_path / "good.glb", pbr_mesh(Asset(bumpy_ball(2), patterned_material())))
    with pytest.raises(InputError, match="texture size"):
        load_asset(tmp_path / "good.glb", texture_size=33)


def test_what_no_photograph_showed_takes_over_the_change_around_it():
    start = Asset(bumpy_ball(3), plain_material(torch.full((3, 64, 64), 0.4)))
    texels = texels_of(start.atlas, 64)
    seen = np.zeros((64, 64), dtype=bool)
    seen[texels.rows, texels.columns] = texels.positions[:, 0] > 0
    stack = start.material.stack.clone()
    stack[:3, torch.from_numpy(seen)] *= 0.5
    stack[3, torch.from_numpy(seen)] = 0.2
    fitted = replace(start, material=Material(stack[:3], stack[3:5]))
    finished = finish(fitted, start)
    color, roughness = finished.material.base_color, finished.material.orm[0]
    assert float((color - 0.2).abs().max()) < 0.02 and float((roughness - 0.2).abs().max()) < 0.01
    untouched = finish(start, start)
    torch.testing.assert_close(untouched.material.base_color, start.material.base_color)


def pictures_from_both_sides(asset: Asset) -> list[np.ndarray]:
    """The colour [3] in the middle of a picture from -x and one from +x."""
    cameras = orbit(torch.tensor([-torch.pi / 2, torch.pi / 2]), torch.zeros(2), size=32)
    return [image[16, 16] for image in renders(asset, cameras)]


def _bounds(points: np.ndarray) -> np.ndarray:
    return np.stack([points.min(axis=0), points.max(axis=0)])
