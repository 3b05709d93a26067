"""The similarity between two sets of cameras of the same pictures."""

from __future__ import annotations

import math

import pytest
import torch
from nvdiffrec_shapes import ring
from scipy.spatial.transform import Rotation

from nvdiffrec.similarity import Similarity, similarity_between
from trellis.errors import InputError
from trellis.renderers.cameras import Cameras

AWAY = Similarity(torch.from_numpy(Rotation.from_rotvec([1.0, -2.0, 0.5]).as_matrix()).float(), 7.3,
                  torch.tensor([3.0, -5.0, 20.0]))  # fmt: skip


def roughly(cameras: Cameras, degrees: float, seed: int = 0) -> Cameras:
    """Each turned about the origin by an angle of that spread, a tenth nearer or farther, with another lens."""
    generator = torch.Generator().manual_seed(seed)
    count = len(cameras)
    turns = Rotation.from_rotvec((torch.randn(count, 3, generator=generator) * math.radians(degrees) / 3**0.5).numpy())
    extrinsics, intrinsics = cameras.extrinsics.clone(), cameras.intrinsics.clone()
    extrinsics[:, :3, :3] @= torch.from_numpy(turns.as_matrix()).float()
    factors = 1 + 0.1 * torch.randn(count, generator=generator)
    extrinsics[:, :3, 3] *= factors[:, None]
    intrinsics[:, [0, 1], [0, 1]] *= factors[:, None]
    return Cameras(extrinsics, intrinsics, cameras.image_size)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_same_cameras_in_another_frame_come_back(count):
    cameras = ring(count)
    found = similarity_between(AWAY.apply(cameras), cameras)
    assert found.angles.max() < 1e-3 and found.shifts.max() < 1e-5
    back = found.similarity.apply(AWAY.apply(cameras))
    torch.testing.assert_close(back.extrinsics, cameras.extrinsics, atol=1e-5, rtol=0)


def test_rough_and_wholly_wrong_estimates_do_not_move_the_others_far():
    cameras = ring(10)
    rough = roughly(cameras, 8)
    wrong = rough.extrinsics.clone()
    wrong[:2, :3, :3] @= torch.from_numpy(Rotation.from_euler("z", 150, degrees=True).as_matrix()).float()
    found = similarity_between(AWAY.apply(cameras), Cameras(wrong, rough.intrinsics, rough.image_size))
    back = found.similarity.apply(AWAY.apply(cameras))
    turn = Rotation.from_matrix((back.rotations[0].T @ cameras.rotations[0]).numpy()).magnitude()
    assert math.degrees(turn) < 6 and found.angles[:2].min() > 120 and found.angles[2:].max() < 25
    # Each lens went with its distance, so nothing looks larger or smaller than it did.
    assert abs(found.similarity.scale * AWAY.scale - 1) < 0.02
    assert (back.centers - cameras.centers).norm(dim=1).max() < 0.25


def test_pictures_that_are_parts_of_photographs_look_past_the_middle():
    cameras = ring(5)
    turn = torch.from_numpy(Rotation.from_rotvec([0.3, -0.2, 0.0]).as_matrix()).float()
    extrinsics, intrinsics = cameras.extrinsics.clone(), cameras.intrinsics.clone()
    extrinsics[:, :3] = turn @ extrinsics[:, :3]
    middle = turn @ torch.tensor([0.0, 0.0, 1.0])
    intrinsics[:, [0, 1], [0, 1]] *= middle[2] ** 1.5  # off its axis a lens draws larger
    intrinsics[:, :2, 2] -= intrinsics[:, [0, 1], [0, 1]] * middle[:2] / middle[2]  # what was in the middle stays there
    found = similarity_between(AWAY.apply(Cameras(extrinsics, intrinsics, cameras.image_size)), cameras)
    assert found.shifts.max() < 1e-4 and found.angles.max() < 0.1


def test_parallel_cameras_do_not_say_how_large_their_frame_is():
    extrinsics = torch.eye(4).repeat(3, 1, 1)
    extrinsics[:, 0, 3] = torch.arange(3.0)
    with pytest.raises(InputError, match="same direction"):
        similarity_between(Cameras(extrinsics, ring(3).intrinsics, ring(3).image_size), ring(3))
