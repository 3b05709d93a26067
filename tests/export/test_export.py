from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
import trimesh
from golden_io import load_golden
from shapes import PATCHES, mesh_of, patch_cube, sampled_colors, sphere

from trellis.errors import InputError
from trellis.export import ExportOptions, TexturedMesh, export_mesh, write_glb
from trellis.export.clean import CleanOptions
from trellis.export.frame import from_gltf_frame, to_gltf_frame
from trellis.representations.gaussian import SH_DC, Gaussian
from trellis.utils.postprocessing_utils import to_glb

QUICK = ExportOptions(num_views=16, view_resolution=192, clean=CleanOptions(num_views=12, resolution=192))


def read_back(path) -> trimesh.Trimesh:
    (mesh,) = trimesh.load_scene(path).geometry.values()
    return mesh


def gltf_json(path) -> dict:
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + length])


def test_axes_are_those_of_the_recorded_export():
    golden = load_golden("glb_axis")
    vertices = golden.inputs["vertices"].numpy()
    mesh = TexturedMesh(
        vertices,
        golden.inputs["faces"].numpy().astype(np.int32),
        np.zeros((4, 2), np.float32),
        np.tile(np.float32([0, 0, 1]), (4, 1)),
        np.zeros((4, 4, 3), np.uint8),
    ).to_trimesh()
    assert np.array_equal(mesh.vertices, golden.outputs["glb_vertices"].numpy())
    assert np.array_equal(mesh.faces, golden.outputs["glb_faces"].numpy())
    assert np.array_equal(from_gltf_frame(to_gltf_frame(vertices)), vertices)


@pytest.mark.parametrize("refine_steps", [0, 20])
def test_colours_survive_export_within_two_steps(tmp_path, refine_steps):
    options = ExportOptions(num_views=16, view_resolution=192, refine_steps=refine_steps, clean=QUICK.clean)
    export_mesh(patch_cube(), None, simplify=0.5, texture_size=256, options=options).export(tmp_path / "cube.glb")
    asset = read_back(tmp_path / "cube.glb")
    inner = np.linspace(-0.36, 0.36, 7)
    u, v = (grid.ravel() for grid in np.meshgrid(inner, inner))
    for side, color in enumerate(PATCHES):
        axis, sign = side % 3, 1 - 2 * (side // 3)
        points = np.empty((len(u), 3))
        points[:, axis], points[:, (axis + 1) % 3], points[:, (axis + 2) % 3] = 0.4 * sign, u, v
        difference = np.abs(sampled_colors(asset, to_gltf_frame(points)) - color)
        assert difference.max() <= 2, f"side {side} is off by {difference.max():.1f}"


@pytest.mark.parametrize("refine_steps", [0, 12])
def test_splats_give_the_colours(refine_steps):
    ball = sphere(0.4, 4)
    points = torch.from_numpy(ball.vertices).float()
    paint = 0.5 + points  # sRGB by place
    gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1])
    gaussian.from_xyz(points)
    gaussian.from_features(((paint - 0.5) / SH_DC)[:, None])
    gaussian.from_scaling(torch.full((len(points), 3), 0.02))
    gaussian.from_rotation(torch.tensor([[1.0, 0, 0, 0]]).repeat(len(points), 1))
    gaussian.from_opacity(torch.full((len(points), 1), 0.9))
    misleading = mesh_of(ball.vertices, ball.faces, np.zeros((len(points), 3)))
    options = ExportOptions(num_views=16, view_resolution=192, refine_steps=refine_steps, clean=QUICK.clean)
    asset = export_mesh(misleading, gaussian, 0.5, 256, options).to_trimesh()
    difference = sampled_colors(asset, to_gltf_frame(ball.vertices[::25])) - 255 * paint.numpy()[::25]
    assert np.abs(difference).mean() < 3 and np.abs(difference).max() < 16


def test_the_file_says_what_a_viewer_needs(tmp_path):
    path = tmp_path / "ball.glb"
    ball = sphere(0.3, 4, center=(0.1, 0.0, -0.05))
    mesh = mesh_of(ball.vertices, ball.faces, (ball.vertices - ball.vertices.min(0)).clip(0, 1))
    asset = to_glb(None, mesh, simplify=0.5, texture_size=128)
    asset.export(path)
    loaded, document = read_back(path), gltf_json(path)

    (material,), (primitive,) = document["materials"], document["meshes"][0]["primitives"]
    roughness = material["pbrMetallicRoughness"]
    assert roughness["metallicFactor"] == 0 and roughness.get("roughnessFactor", 1) == 1
    assert not material.get("doubleSided", False) and material.get("alphaMode", "OPAQUE") == "OPAQUE"
    assert {"POSITION", "NORMAL", "TEXCOORD_0"} <= set(primitive["attributes"])

    assert np.allclose(loaded.bounds, asset.bounds, atol=1e-6)
    assert np.allclose(loaded.bounds, [[-0.2, -0.35, -0.3], [0.4, 0.25, 0.3]], atol=0.01)
    assert np.array_equal(*(np.asarray(m.visual.material.baseColorTexture.convert("RGB")) for m in (asset, loaded)))
    assert np.allclose(loaded.visual.uv, asset.visual.uv, atol=1e-6)
    outward = np.einsum("fk,fk->f", loaded.face_normals, loaded.triangles_center - loaded.bounds.mean(axis=0))
    assert (outward > 0).all()

    # The stored v runs downwards: looked up in the stored image, a vertex shows the colour painted on it.
    points = to_gltf_frame(ball.vertices[::50])
    expected = 255 * (ball.vertices - ball.vertices.min(0))[::50]
    assert np.abs(sampled_colors(loaded, points) - expected).mean() < 3


def test_a_single_triangle_exports(tmp_path):
    mesh = mesh_of([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]], [[0, 1, 2]], np.full((3, 3), 0.6))
    export_mesh(mesh, texture_size=64, options=QUICK).export(tmp_path / "one.glb")
    loaded = read_back(tmp_path / "one.glb")
    assert len(loaded.faces) == 1
    center = np.asarray(loaded.triangles_center)
    assert np.abs(sampled_colors(loaded, center) - 153).max() <= 2


def test_broken_vertices_cost_only_their_faces():
    ball = sphere(0.4, 4)
    vertices = ball.vertices.copy()
    vertices[7] = np.nan
    result = export_mesh(mesh_of(vertices, ball.faces), texture_size=64, options=QUICK)
    assert np.isfinite(result.vertices).all() and np.isfinite(result.uvs).all()
    assert (result.texture == result.texture[0, 0]).all()  # nothing gives a colour: neutral grey
    assert trimesh.Trimesh(result.vertices, result.faces).is_watertight  # the hole of one vertex was closed


def test_progress_counts_up_and_may_stop_the_export():
    seen = []
    ball = sphere(0.4, 3)
    mesh = mesh_of(ball.vertices, ball.faces, np.full((len(ball.vertices), 3), 0.5))
    export_mesh(mesh, texture_size=64, options=QUICK, callback=lambda *report: seen.append(report))
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["clean", "simplify", "unwrap", "bake"]
    baked = [step for stage, step, _ in seen if stage == "bake"]
    assert baked == sorted(baked) and baked[-1] == QUICK.num_views
    assert baked.count(QUICK.num_views) > 3  # a stop is heard between the steps that sharpen, too

    class Stop(Exception):
        pass

    def stop(stage, step, of):
        if stage == "bake" and step == 3:
            raise Stop

    with pytest.raises(Stop):
        export_mesh(mesh, texture_size=64, options=QUICK, callback=stop)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    class Broken:
        def export(self, path, file_type):
            path.write_bytes(b"half")
            raise OSError("disk full")

    (tmp_path / "asset.glb").write_bytes(b"before")
    with pytest.raises(OSError, match="disk full"):
        write_glb(tmp_path / "asset.glb", Broken())
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("asset.glb", b"before")]
    with pytest.raises(InputError, match="end in .glb"):
        write_glb(tmp_path / "asset.obj", Broken())


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="num_views"):
        ExportOptions(num_views=0)
