"""The trust in cameras, against outlines rendered with known ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from studio.trust import trust_in_cameras
from trellis.renderers import mesh_raster
from trellis.renderers.cameras import Cameras, turntable


def outlines(cameras: Cameras) -> list[Image.Image]:
    """Views of a bar that lies along x, off the middle."""
    corners = torch.tensor([[x, y, z] for x in (-0.4, 0.3) for y in (0.0, 0.2) for z in (-0.2, 0.1)])
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = torch.tensor([f for q in quads for f in (q[:3], [q[0], q[2], q[3]])], dtype=torch.int32)
    images = []
    for index in range(len(cameras)):
        screen = mesh_raster.project(corners, cameras.extrinsics[index], cameras.intrinsics[index])
        height, width = cameras.height_width(index)
        covered = mesh_raster.rasterize(screen, faces, height, width).face_ids.numpy() >= 0
        picture = np.zeros((height, width, 4), dtype=np.uint8)
        picture[covered] = (180, 90, 40, 255)
        images.append(Image.fromarray(picture))
    return images


def test_right_cameras_are_trusted_and_a_wrong_one_is_not():
    cameras = turntable(6, size=96)
    images = outlines(cameras)
    assert min(trust_in_cameras(cameras, images)) > 0.95
    extrinsics = cameras.extrinsics.clone()
    extrinsics[2] = cameras.extrinsics[0]  # looks along the bar's side, where it saw another
    extrinsics[2, 0, 3] += 0.35
    trusts = trust_in_cameras(Cameras(extrinsics, cameras.intrinsics, cameras.image_size), images)
    assert trusts[2] < 0.6
    assert min(trust for index, trust in enumerate(trusts) if index != 2) > 0.85


@pytest.mark.parametrize("count", [1, 2])
def test_two_outlines_prove_nothing(count):
    cameras = turntable(count, size=32)
    assert trust_in_cameras(cameras, outlines(cameras)) == [None] * count


def test_a_view_without_an_object_is_not_trusted():
    cameras = turntable(4, size=32)
    images = outlines(cameras)
    images[1] = Image.new("RGBA", (32, 32))
    assert trust_in_cameras(cameras, images)[1] == 0.0
