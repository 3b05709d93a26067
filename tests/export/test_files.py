"""Every format read back, and rendered from the same camera."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch
import trimesh
from shapes import mesh_of

from trellis.errors import InputError
from trellis.export import ExportOptions, TexturedMesh, export_files, export_mesh
from trellis.export.clean import CleanOptions
from trellis.export.frame import from_gltf_frame, metres_per_unit, scaled_cameras
from trellis.export.splats import gaussian_of, load_spz, splat_table
from trellis.export.spz import pack_spz, unpack_spz
from trellis.renderers import gaussian_raster, mesh_raster
from trellis.renderers.camera_formats import from_colmap_text, from_transforms
from trellis.renderers.cameras import Cameras, orbit
from trellis.representations.gaussian import SH_DC, Gaussian

LONGEST_SIDE = 0.25  # metres


@pytest.fixture(scope="module")
def solid() -> trimesh.Trimesh:
    """Nothing about it is symmetric, so that every wrong axis shows."""
    parts = [
        trimesh.creation.box((0.6, 0.4, 0.2)).apply_translation((0, 0, -0.1)),
        trimesh.creation.box((0.15, 0.2, 0.55)).apply_translation((0.2, 0.08, 0.2)),
        trimesh.creation.box((0.2, 0.1, 0.1)).apply_translation((-0.15, -0.12, 0.05)),
    ]
    dense = [part.subdivide_to_size(0.03) for part in parts]
    return trimesh.util.concatenate(dense)


@pytest.fixture(scope="module")
def splats(solid) -> Gaussian:
    points, faces = trimesh.sample.sample_surface(solid, 90_000, seed=0)
    normals = solid.face_normals[faces]
    quats = np.stack([1 + normals[:, 2] + 1e-6, -normals[:, 1], normals[:, 0], 0 * normals[:, 0]], axis=1)
    gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1], scaling_activation="exp")
    gaussian.from_xyz(torch.from_numpy(np.asarray(points)).float())
    gaussian.from_features(((torch.from_numpy(paint(points)).float() - 0.5) / SH_DC)[:, None])
    gaussian.from_scaling(torch.tensor([0.0024, 0.0024, 0.0003]).repeat(len(points), 1))
    gaussian.from_rotation(torch.nn.functional.normalize(torch.from_numpy(quats).float()))
    gaussian.from_opacity(torch.full((len(points), 1), 0.95))
    return gaussian


@pytest.fixture(scope="module")
def asset(solid, splats) -> TexturedMesh:
    options = ExportOptions(num_views=16, view_resolution=192, clean=CleanOptions(num_views=12, resolution=192))
    return export_mesh(mesh_of(solid.vertices, solid.faces), splats, 0.3, 256, options)


@pytest.fixture(scope="module")
def cameras() -> Cameras:
    return orbit(torch.tensor([0.4, 2.5, 4.4]), torch.tensor([0.3, -0.2, 0.8]), 2.0, 40.0, 256)


@pytest.fixture(scope="module")
def files(tmp_path_factory, asset, splats, cameras):
    formats = ("glb", "obj", "stl", "ply", "spz", "transforms", "colmap")
    return export_files(
        tmp_path_factory.mktemp("files"), asset, splats, cameras, None, formats, LONGEST_SIDE, name="thing"
    )


def paint(points):
    return 0.5 + 0.45 * np.sin(np.asarray(points) * [9, 8, 7] + [0, 1, 2])


def metre_cameras(asset, cameras) -> Cameras:
    return scaled_cameras(cameras, metres_per_unit(asset.vertices, LONGEST_SIDE))


def picture(loaded: trimesh.Trimesh, cameras: Cameras, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour [H, W, 3] and mask [H, W] of a loaded mesh in the glTF frame, unlit."""
    vertices = torch.from_numpy(from_gltf_frame(loaded.vertices)).float()
    uvs = torch.from_numpy(np.array(loaded.visual.uv)).float()
    faces = torch.from_numpy(np.array(loaded.faces))
    view = mesh_raster.render_mesh(vertices, faces, uvs, cameras, k, antialiased=False)
    material = loaded.visual.material
    image = material.baseColorTexture if hasattr(material, "baseColorTexture") else material.image
    texture = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).float().permute(2, 0, 1)[None] / 255
    lookup = view["attributes"] * torch.tensor([2.0, -2.0]) + torch.tensor([-1.0, 1.0])
    color = torch.nn.functional.grid_sample(texture, lookup[None], align_corners=False, padding_mode="border")[0]
    mask = view["mask"][..., 0].numpy() > 0.5
    return color.permute(1, 2, 0).numpy() * mask[..., None], mask


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def load_glb(files) -> trimesh.Trimesh:
    (mesh,) = trimesh.load_scene(files["glb"][0]).geometry.values()
    return mesh


def load_obj(files, folder) -> trimesh.Trimesh:
    with zipfile.ZipFile(files["obj"][0]) as archive:
        assert sorted(archive.namelist()) == ["thing.mtl", "thing.obj", "thing.png"]
        archive.extractall(folder)
    return trimesh.load(folder / "thing.obj", process=False, force="mesh")


def test_glb_and_obj_render_alike(files, asset, cameras, tmp_path):
    cameras = metre_cameras(asset, cameras)
    glb, obj = load_glb(files), load_obj(files, tmp_path)
    for k in range(len(cameras)):
        (color, mask), (other, other_mask) = picture(glb, cameras, k), picture(obj, cameras, k)
        psnr = -10 * np.log10(max(np.square(color - other).mean(), 1e-12))
        assert psnr > 35 and iou(mask, other_mask) > 0.999, f"view {k}: {psnr:.1f} dB"


@pytest.mark.parametrize("form", ["ply", "spz"])
def test_splats_lie_on_the_mesh(files, asset, cameras, form):
    scale = metres_per_unit(asset.vertices, LONGEST_SIDE)
    if form == "ply":
        gaussian = Gaussian([-0.5, -0.5, -0.5, 1, 1, 1], scaling_activation="exp")
        gaussian.load_ply(files["ply"][0], frame="gltf")
    else:
        gaussian = gaussian_of(splat_table(load_spz(files["spz"][0], scale), scale))  # in metres
    glb, cameras = load_glb(files), metre_cameras(asset, cameras)
    for k in range(len(cameras)):
        color, mask = picture(glb, cameras, k)
        with torch.no_grad():
            image = gaussian_raster.render_gaussians(
                gaussian.get_xyz, gaussian.get_rotation, gaussian.get_scaling, gaussian.get_opacity[:, 0],
                gaussian.get_color, cameras.extrinsics[k], cameras.intrinsics[k], 256, 256, kernel_size=0.01,
            )  # fmt: skip
        covered = image.alpha[0].numpy() > 0.5
        assert iou(mask, covered) > 0.98, f"view {k}: {iou(mask, covered):.4f}"
        both = mask & covered & (image.alpha[0].numpy() > 0.95)
        assert np.abs(color - image.color.permute(1, 2, 0).numpy())[both].mean() < 0.02


def test_every_mesh_has_the_length_that_was_asked_for(files, tmp_path):
    stl = trimesh.load(files["stl"][0])
    glb = load_glb(files)
    for mesh in (glb, load_obj(files, tmp_path), stl):
        assert mesh.extents.max() == pytest.approx(LONGEST_SIDE, rel=1e-5)
        assert np.allclose(mesh.bounds, glb.bounds, atol=1e-6)
    assert stl.is_watertight == trimesh.Trimesh(glb.vertices, glb.faces).is_watertight
    assert stl.volume == pytest.approx(glb.volume, rel=1e-4)


def test_cameras_read_back_are_those_of_the_photographs(files, asset, cameras):
    metres = metre_cameras(asset, cameras)
    for read, names in (
        from_transforms(json.loads(files["transforms"][0].read_text())),
        from_colmap_text(*(path.read_text() for path in files["colmap"][:2])),
    ):
        assert names == ["view_000.png", "view_001.png", "view_002.png"]
        assert torch.allclose(read.extrinsics, metres.extrinsics, atol=1e-5)
        assert torch.allclose(read.intrinsics, metres.intrinsics, rtol=1e-5)
        assert torch.equal(read.image_size, metres.image_size)


def test_webp_keeps_every_texel(asset, tmp_path):
    asset.export(tmp_path / "a.glb", image_format="webp")
    data = (tmp_path / "a.glb").read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + length])
    view = document["bufferViews"][document["images"][0]["bufferView"]]
    start = 28 + length + view["byteOffset"]
    from PIL import Image

    image = Image.open(io.BytesIO(data[start : start + view["byteLength"]]))
    assert image.format == "WEBP" and np.array_equal(np.asarray(image.convert("RGB")), asset.texture)


def test_spz_keeps_gaussians_within_its_steps(splats):
    table = splat_table(splats)
    content = pack_spz(table)
    assert content == pack_spz(table) and len(content) < 0.3 * 4 * table.size
    back = unpack_spz(content)
    assert np.abs(back[:, :3] - table[:, :3]).max() < 1e-6
    assert np.abs(back[:, 10:13] - table[:, 10:13]).max() <= 1 / 32 + 1e-6
    assert np.abs(back[:, 6:9] - table[:, 6:9]).max() * SH_DC <= 0.5 / (0.15 * 255) * SH_DC + 1e-6
    unit = table[:, 13:] / np.linalg.norm(table[:, 13:], axis=1, keepdims=True)
    assert np.abs((back[:, 13:] * unit).sum(axis=1)).min() > 1 - 1e-5
    opacity = [1 / (1 + np.exp(-t[:, 9])) for t in (back, table)]
    assert np.abs(opacity[0] - opacity[1]).max() <= 0.5 / 255 + 1e-6


def test_spz_bytes_are_those_of_the_format():
    """One Gaussian, coded by hand from the description of the format."""
    row = np.zeros((1, 17))
    row[0, :3] = 0.5, -0.25, 0.125
    row[0, 9], row[0, 10:13], row[0, 13:] = 0.0, -4.0, [0.6, 0.0, -0.8, 0.0]
    data = gzip.decompress(pack_spz(row))
    assert struct.unpack_from("<IIIBBBB", data) == (0x5053474E, 3, 1, 0, 23, 0, 0)
    assert data[16:25] == b"".join(int(v * 2**23).to_bytes(3, "little", signed=True) for v in row[0, :3])
    assert list(data[25:32]) == [128, 128, 128, 128, 96, 96, 96]
    # y is the largest and negative, so the signs turn: x 0, z 0, w -0.6 in units of sqrt(1/2) / 511.
    w = 1 << 9 | round(0.6 * 2**0.5 * 511)
    assert struct.unpack_from("<I", data, 32)[0] == 1 << 30 | w
    version_2 = struct.pack("<IIIBBBB", 0x5053474E, 2, 1, 0, 12, 0, 0) + (2048).to_bytes(3, "little") + bytes(6)
    version_2 += bytes([128, 128, 128, 128, 96, 96, 96, 255, 128, 128])
    old = unpack_spz(gzip.compress(version_2))
    assert old[0, 0] == 0.5 and old[0, 10] == -4 and abs(old[0, 14]) > 0.999


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PLY?",
        gzip.compress(b"short"),
        gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 3, 5, 0, 12, 0, 0)),
        gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 3, 2**31, 0, 12, 0, 0)),
        gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 9, 0, 0, 12, 0, 0)),
    ],
    # gzip holds the time, so names made of it would differ between processes
    ids=["empty", "not gzip", "short", "shorter than it says", "too many splats", "unknown version"],
)
def test_damaged_spz_files_are_refused(content):
    with pytest.raises(InputError, match="SPZ"):
        unpack_spz(content)


def test_what_cannot_be_written_is_refused_before_anything_is(asset, tmp_path):
    with pytest.raises(InputError, match="no export format 'fbx'"):
        export_files(tmp_path, asset, formats=("glb", "fbx"))
    with pytest.raises(InputError, match="needs Gaussians"):
        export_files(tmp_path, asset, formats=("glb", "ply"))
    with pytest.raises(InputError, match="needs cameras"):
        export_files(tmp_path, asset, formats=("glb", "colmap"))
    for length in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(InputError, match="metres"):
            export_files(tmp_path, asset, longest_side=length)
    with pytest.raises(InputError, match=r"\.fbx"):
        asset.export(tmp_path / "asset.fbx")
    assert list(tmp_path.iterdir()) == []
