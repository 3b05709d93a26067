"""Several readings of the same cameras made into one."""

from __future__ import annotations

import math

import pytest
import torch

from trellis.pipelines.camera_readings import combined, first_views
from trellis.renderers.cameras import Cameras, orbit
from trellis.renderers.rotations import quaternion_to_matrix

YAW = torch.tensor([0.0, 1.5, 3.2, 4.6, 5.5])
PITCH = torch.tensor([0.2, 0.5, 0.1, 0.7, 0.3])
TRUE = orbit(YAW, PITCH, 2.2, 35.0, 56)


def turned(rotations, angle):
    """World-to-camera rotations after the world is turned by `angle` about z."""
    c, s = math.cos(angle), math.sin(angle)
    return rotations @ torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]).mT


def reading(first, noise=0.0, seed=0):
    """The true cameras as read with view `first` at azimuth 0; every other is off by some `noise` radians."""
    generator = torch.Generator().manual_seed(seed)
    half = 0.5 * noise * torch.randn(len(TRUE), 3, generator=generator)
    half[first] = 0
    off = quaternion_to_matrix(torch.cat([torch.ones(len(TRUE), 1), half], 1))
    return placed(turned(off @ TRUE.rotations, float(YAW[first])))


def placed(rotations):
    extrinsics = TRUE.extrinsics.clone()
    extrinsics[:, :3, :3] = rotations
    return Cameras(extrinsics, TRUE.intrinsics, TRUE.image_size)


def degrees(a, b):
    cosine = ((a.rotations @ b.rotations.mT).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.rad2deg(cosine.clamp(-1, 1).arccos())


def azimuth(cameras):
    return torch.atan2(cameras.centers[:, 0], cameras.centers[:, 1])


def test_exact_readings_give_the_true_cameras():
    cameras = combined([reading(first) for first in range(len(TRUE))])
    torch.testing.assert_close(cameras.extrinsics, TRUE.extrinsics, atol=1e-5, rtol=0)
    torch.testing.assert_close(cameras.centers, TRUE.centers, atol=1e-5, rtol=0)
    assert torch.equal(cameras.intrinsics, TRUE.intrinsics) and torch.equal(cameras.image_size, TRUE.image_size)


def test_noise_averages_out_and_an_outlier_has_no_say():
    true = TRUE.rotations.clone()
    true[2] = turned(true[2], math.pi)  # a view from behind, taken for one from the front
    ones, together = [], []
    for seed in range(20):
        readings = [reading(first, 0.05, 10 * seed + first) for first in range(len(TRUE))]
        ones.append(degrees(readings[0], TRUE)[1:])
        readings[3] = placed(turned(true, float(YAW[3])))
        together.append(degrees(combined(readings), TRUE)[1:])
    assert torch.stack(together).mean() < 0.8 * torch.stack(ones).mean()
    assert torch.stack(together).max() < 10


def test_where_readings_disagree_entirely_the_first_one_stands():
    # The others see every view but the first from behind: an object that looks alike from both sides.
    behind = TRUE.rotations.clone()
    behind[1:] = turned(behind[1:], math.pi)
    readings = [reading(0), *(placed(turned(behind, float(YAW[first]))) for first in (1, 2, 3))]
    assert degrees(combined(readings), TRUE).max() < 5


def test_the_first_view_stays_in_front_and_places_in_the_picture_stay():
    readings = [reading(first, 0.1, first) for first in range(len(TRUE))]
    cameras = combined(readings)
    assert abs(float(azimuth(cameras)[0])) < 1e-5
    assert torch.equal(cameras.translations, readings[0].translations)  # where the camera sees the middle of the object


def test_one_reading_is_left_as_it_is():
    only = reading(0, 0.1)
    assert combined([only]) is only


@pytest.mark.parametrize(
    ("views", "readings", "first"),
    [(1, 8, [0]), (2, 8, [0]), (3, 8, [0, 1, 2]), (5, 1, [0]), (5, 2, [0]), (8, 4, [0, 2, 4, 6]), (32, 3, [0, 10, 21])],
)
def test_views_put_first_are_spread_over_all(views, readings, first):
    assert first_views(views, readings) == first
