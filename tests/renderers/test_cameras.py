from __future__ import annotations

import math

import pytest
import torch
from golden_io import assert_close, load_golden

from trellis.errors import InputError
from trellis.renderers.cameras import Cameras, hammersley, hammersley_yaw_pitch, look_at, orbit, turntable


def make(count: int = 3) -> Cameras:
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(count, 2, generator=generator)
    return orbit(angles[:, 0] * 6, angles[:, 1] - 0.5, radius=2.0, fov=35.0, size=(48, 64))


def test_recorded_views_are_reproduced():
    golden = load_golden("cameras")
    out = golden.outputs
    video = turntable(golden.config["num_frames"], golden.config["r"], golden.config["fov"])
    assert_close(video.extrinsics, out["video_extrinsics"])
    assert_close(video.normalised_intrinsics, out["video_intrinsics"])

    views = golden.config["hammersley"]
    assert_close(hammersley_yaw_pitch(views), out["ham_yaw_pitch"])
    spread = hammersley(views, golden.config["r"], golden.config["fov"])
    assert_close(spread.extrinsics, out["ham_extrinsics"])
    assert_close(spread.normalised_intrinsics, out["ham_intrinsics"])

    yaw, pitch = golden.inputs["yaw_pitch"]
    single = orbit(yaw[None], pitch[None], golden.config["r"], golden.config["fov"])
    assert_close(single.extrinsics[0], out["single_extrinsics"])
    assert_close(single.normalised_intrinsics[0], out["single_intrinsics"])


def test_yaw_zero_stands_on_plus_y_with_z_up():
    camera = orbit(torch.zeros(1), torch.zeros(1), radius=3.0)
    assert_close(camera.centers, torch.tensor([[0.0, 3.0, 0.0]]))
    assert_close(camera.directions, torch.tensor([[0.0, -1.0, 0.0]]))
    above = camera.rotations[0] @ torch.tensor([0.0, 0.0, 1.0])
    assert_close(above, torch.tensor([0.0, -1.0, 0.0]))  # up in the world is -y in the camera


def test_looking_exactly_along_up_still_gives_a_rotation():
    extrinsics = look_at(torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, -2.0]]))
    rotation = extrinsics[:, :3, :3]
    assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(2, 3, 3))
    assert_close(torch.linalg.det(rotation), torch.ones(2))


def test_indexing_and_concatenation():
    cameras = make(4)
    assert len(cameras[1]) == 1 and len(cameras[1:3]) == 2 and len(cameras[[0, 3]]) == 2
    assert len(cameras[torch.tensor([True, False, True, False])]) == 2
    assert [len(camera) for camera in cameras] == [1, 1, 1, 1]
    joined = Cameras.cat([cameras[2:], cameras[:2]])
    assert torch.equal(joined.extrinsics, cameras.extrinsics[[2, 3, 0, 1]])
    with pytest.raises(IndexError):
        cameras[4]


def test_scaling_moves_projections_with_the_pixels():
    cameras = make()
    half = cameras.scaled(24, 128)
    point = torch.tensor([0.1, -0.2, 0.3, 1.0])

    def pixel(group: Cameras) -> torch.Tensor:
        seen = group.intrinsics @ (group.extrinsics @ point)[:, :3, None]
        return (seen[:, :2] / seen[:, 2:])[..., 0]

    assert_close(pixel(half), pixel(cameras) * torch.tensor([2.0, 0.5]))
    assert half.height_width(0) == (24, 128)
    assert_close(cameras.fields_of_view[:, 0], torch.full((3,), math.radians(35.0)))


def test_gradients_reach_the_matrices():
    cameras = make()
    extrinsics = cameras.extrinsics.clone().requires_grad_()
    Cameras(extrinsics, cameras.intrinsics, cameras.image_size).centers.sum().backward()
    assert extrinsics.grad is not None and float(extrinsics.grad.abs().sum()) > 0


def replaced(name: str, change) -> dict[str, torch.Tensor]:
    fields = {key: getattr(make(), key).clone() for key in ("extrinsics", "intrinsics", "image_size")}
    fields[name] = change(fields[name])
    return fields


def _set(index, value):
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[index] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("extrinsics", lambda e: e[:, :3], "Extrinsics must be a tensor"),
        ("extrinsics", _set((0, 0, 0), math.nan), "not finite"),
        ("extrinsics", _set((1, slice(3), slice(3)), 2 * torch.eye(3)), "camera 1 is not orthonormal"),
        ("extrinsics", _set((0, slice(3), slice(3)), -torch.eye(3)), "reflection"),
        ("extrinsics", _set((0, 3, 0), 1.0), "last row"),
        ("intrinsics", _set((0, 1, 1), -3.0), "Focal lengths must be positive"),
        ("intrinsics", _set((0, 0, 1), 0.5), "without skew"),
        ("intrinsics", lambda k: k.double(), "share device and dtype"),
        ("image_size", lambda s: s.float(), "integers"),
        ("image_size", lambda s: s[0], "(height, width)"),
        ("image_size", _set((0, 0), 0), "at least one pixel"),
        ("image_size", lambda s: s[:0], "At least one camera"),
    ],
)
def test_what_is_not_a_camera_is_refused_with_a_sentence(name, change, message):
    with pytest.raises(InputError) as caught:
        Cameras(**replaced(name, change))
    assert message in str(caught.value)


def test_builders_refuse_impossible_views():
    for call in (
        lambda: orbit(torch.zeros(1), torch.zeros(1), radius=0.0),
        lambda: orbit(torch.zeros(1), torch.zeros(1), fov=180.0),
        lambda: hammersley(0),
        lambda: look_at(torch.zeros(1, 3)),
    ):
        with pytest.raises(InputError):
            call()
