from __future__ import annotations

import json
import math

import pytest
import torch
from golden_io import assert_close, load_golden

from trellis.errors import InputError
from trellis.renderers.camera_formats import (
    from_colmap_text,
    from_pose_encoding,
    from_transforms,
    to_colmap_text,
    to_pose_encoding,
    to_transforms,
)
from trellis.renderers.cameras import Cameras, look_at, orbit
from trellis.renderers.projection import clip_projection, opengl_perspective, opengl_view
from trellis.renderers.rotations import matrix_to_quaternion, quaternion_to_matrix


def assert_same(actual: Cameras, expected: Cameras) -> None:
    assert_close(actual.extrinsics, expected.extrinsics)
    assert_close(actual.intrinsics, expected.intrinsics)
    assert torch.equal(actual.image_size, expected.image_size)


def mixed_views() -> Cameras:
    """Three views, of which one has another size, focal length and principal point."""
    usual = orbit(torch.tensor([0.3, 2.0]), torch.tensor([0.1, -0.6]), radius=1.7, fov=42.0, size=(40, 60))
    other = orbit(torch.tensor([4.0]), torch.tensor([1.2]), radius=2.2, fov=30.0, size=64)
    shifted = other.intrinsics.clone()
    shifted[:, :2, 2] += torch.tensor([3.0, -5.0])
    return Cameras.cat([usual, Cameras(other.extrinsics, shifted, other.image_size)])


@pytest.mark.parametrize("frame", ["gltf", "object"])
@pytest.mark.parametrize("count", [2, 3])  # 2: shared intrinsics, 3: one differs
def test_transforms_round_trip(frame, count):
    cameras = mixed_views()[:count]
    paths = [f"images/{i}.png" for i in range(count)]
    written = json.loads(json.dumps(to_transforms(cameras, paths, frame)))
    assert ("fl_x" in written) == (count == 2)
    read, names = from_transforms(written, frame)
    assert names == paths
    assert_same(read, cameras)


def test_transforms_are_opengl_cameras_in_the_gltf_frame():
    camera = orbit(torch.zeros(1), torch.zeros(1), radius=2.0)  # on +y of the object frame: -z of the glTF frame
    matrix = torch.tensor(to_transforms(camera, ["a.png"])["frames"][0]["transform_matrix"])
    assert_close(matrix[:3, 3], torch.tensor([0.0, 0.0, -2.0]))
    assert_close(matrix[:3, 1], torch.tensor([0.0, 1.0, 0.0]))  # camera y is up, and so is the world's
    assert_close(matrix[:3, 2], torch.tensor([0.0, 0.0, -1.0]))  # camera z points away from the object


def test_classic_transforms_with_an_opening_angle():
    frames = [{"file_path": "a", "transform_matrix": torch.eye(4).tolist()}]
    cameras, _ = from_transforms({"camera_angle_x": math.pi / 2, "w": 80, "h": 60, "frames": frames})
    expected = torch.tensor([[40.0, 0.0, 40.0], [0.0, 40.0, 30.0], [0.0, 0.0, 1.0]])
    assert_close(cameras.intrinsics[0], expected)


@pytest.mark.parametrize("frame", ["gltf", "object"])
def test_colmap_round_trip(frame):
    cameras = mixed_views()
    names = ["a.png", "with space.png", "c.png"]
    read, read_names = from_colmap_text(*to_colmap_text(cameras, names, frame), frame)
    assert read_names == names
    assert_same(read, cameras)


def test_colmap_shared_simple_pinhole_and_points():
    lenses = "# comment\n7 SIMPLE_PINHOLE 64 48 50 32 24\n"
    images = "# comment\n3 1 0 0 0 0 0 2 7 b.png\n1.0 2.0 -1 3.0 4.0 9\n5 0 0 0 1 0 0 3 7 a.png\n\n"
    cameras, names = from_colmap_text(lenses, images, frame="object")
    assert names == ["b.png", "a.png"]
    assert cameras.image_size.tolist() == [[48, 64]] * 2
    half_turn = torch.tensor([[-1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]])
    assert_close(cameras.extrinsics[1], half_turn)


def test_recorded_pose_encoding():
    golden = load_golden("vggt_pose_encoding")
    encoding = golden.inputs["pose_enc"][0]
    sizes = golden.config["image_size_hw"], golden.config["second_image_size_hw"]
    for suffix, (height, width) in zip("ab", sizes, strict=True):
        cameras = from_pose_encoding(encoding, height, width)
        assert_close(cameras.extrinsics[:, :3], golden.outputs[f"extrinsics_{suffix}"][0])
        assert_close(cameras.intrinsics, golden.outputs[f"intrinsics_{suffix}"][0])
        assert_close(to_pose_encoding(cameras), golden.outputs[f"roundtrip_{suffix}"][0])


def test_pose_encoding_refuses_a_shifted_principal_point():
    with pytest.raises(InputError, match="principal point"):
        to_pose_encoding(mixed_views())


def test_quaternions_cover_every_rotation():
    quats = torch.nn.functional.normalize(torch.randn(200, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    quats = torch.cat([quats, torch.eye(4)])  # half turns have w = 0
    quats = torch.where(quats[:, :1] < 0, -quats, quats)
    assert_close(matrix_to_quaternion(quaternion_to_matrix(quats)), quats)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_transforms({"frames": []}), "no frames"),
        (lambda: from_transforms({"frames": [{"fl_x": 3}]}), "no image size"),
        (lambda: from_transforms({"w": 4, "h": 4, "frames": [{}]}), "no focal length"),
        (lambda: from_transforms({"w": 4, "h": 4, "fl_x": 3, "k1": 0.1, "frames": [{}]}), "distortion"),
        (lambda: from_transforms({"w": 4, "h": 4, "fl_x": 3, "frames": [{}]}), "transform_matrix"),
        (lambda: from_colmap_text("1 OPENCV 4 4 1 1 1 1 0 0 0 0", ""), "distortion"),
        (lambda: from_colmap_text("1 PINHOLE 4 4 1 1", ""), "cameras.txt"),
        (lambda: from_colmap_text("1 PINHOLE 4 4 1 1 2 2", "1 1 0 0 0 0 0 0 2 a.png\n\n"), "images.txt"),
        (lambda: from_colmap_text("1 PINHOLE 4 4 1 1 2 2", ""), "no images"),
        (lambda: to_transforms(mixed_views(), ["a"]), "One image path per camera"),
        (lambda: to_transforms(mixed_views(), ["a"] * 3, frame="opengl"), "frame must be"),
        (lambda: from_pose_encoding(torch.zeros(2, 8), 4, 4), "[N, 9]"),
    ],
)
def test_unreadable_input_is_refused_with_a_sentence(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)


def test_recorded_projection_matrices():
    golden = load_golden("cameras")
    yaw, pitch = golden.inputs["yaw_pitch"]
    camera = orbit(yaw[None], pitch[None], golden.config["r"], golden.config["fov"])
    out = golden.outputs
    assert_close(clip_projection(camera, *golden.config["gaussian_near_far"])[0], out["proj_gaussian"])
    assert_close(clip_projection(camera, *golden.config["mesh_near_far"])[0], out["proj_mesh"])
    assert_close(opengl_view(camera)[0], out["gl_view"])
    assert_close(opengl_perspective(camera, 0.1, 10)[0], out["gl_perspective_bake"])
    assert_close(opengl_perspective(camera, 1, 3)[0], out["gl_perspective_holes"])
    placed = Cameras(look_at(torch.tensor([[1.0, 1.2, 0.8]])), camera.intrinsics, camera.image_size)
    assert_close(opengl_view(placed)[0], out["gl_view_look_at"])


def test_projection_matrices_agree_with_the_intrinsics_off_centre():
    camera = mixed_views()[2]
    seen = torch.tensor([0.2, -0.3, 2.0, 1.0])
    pixel = (camera.intrinsics[0] @ seen[:3])[:2] / seen[2]
    unit = 2 * pixel / camera.image_size[0].flip(0) - 1
    clip = clip_projection(camera, 1, 3)[0] @ seen
    assert_close(clip[:2] / clip[3], unit)
    clip = opengl_perspective(camera, 1, 3)[0] @ (seen * torch.tensor([1, -1, -1, 1]))
    assert_close(clip[:2] / clip[3], unit * torch.tensor([1, -1]))
