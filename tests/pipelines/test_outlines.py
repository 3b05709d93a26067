"""Outlines of photographs tell which of several structures is theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from trellis.pipelines.outlines import Outlines, best_fitting
from trellis.renderers import mesh_raster
from trellis.renderers.cameras import Cameras, orbit

RESOLUTION, SIDE = 32, 128


def voxels(inside) -> torch.Tensor:
    """The voxels whose centres x, y, z satisfy a condition, [M, 4]."""
    axis = (torch.arange(RESOLUTION) + 0.5) / RESOLUTION - 0.5
    grid = inside(*torch.meshgrid(axis, axis, axis, indexing="ij"))
    return torch.nn.functional.pad(grid.nonzero(), (1, 0)).int()


SLAB = voxels(lambda x, y, z: (x.abs() < 0.45) & (y.abs() < 0.25) & (z.abs() < 0.1))
CROSS = voxels(
    lambda x, y, z: (y.abs() < 0.1) & (z.abs() < 0.45) & (x.abs() < torch.where((z - 0.2).abs() < 0.1, 0.4, 0.1))
)
BALL = voxels(lambda x, y, z: x**2 + y**2 + z**2 < 0.2)


def cameras(count: int = 4) -> Cameras:
    return orbit(torch.arange(count) * 1.4, torch.full((count,), 0.4), 2.2, 35.0, SIDE)


def photographs(coords: torch.Tensor, seen_from: Cameras) -> list[Image.Image]:
    points = (coords[:, 1:] + torch.rand(60, len(coords), 3, generator=torch.Generator().manual_seed(0))).reshape(-1, 3)
    images = []
    for index in range(len(seen_from)):
        place = mesh_raster.project(points / RESOLUTION - 0.5, seen_from.extrinsics[index], seen_from.intrinsics[index])
        column, row = place[:, :2].long().clamp(0, SIDE - 1).T.numpy()
        rgba = np.zeros((SIDE, SIDE, 4), np.uint8)
        rgba[row, column] = 255
        images.append(Image.fromarray(rgba))
    return images


@pytest.mark.parametrize("shape", [SLAB, CROSS, BALL], ids=["slab", "cross", "ball"])
def test_the_right_shape_is_found_though_cameras_are_beside_and_too_near(shape):
    right = cameras()
    wrong = right.extrinsics.clone()
    wrong[:, :3, 3] *= torch.tensor([1.0, 1.0, 0.85])
    wrong[:, 0, 3] += torch.tensor([0.1, -0.1, 0.05, 0.0])
    outlines = Outlines(photographs(shape, right), Cameras(wrong, right.intrinsics, right.image_size))
    scores = [outlines.agreement(coords, RESOLUTION) for coords in (SLAB, CROSS, BALL)]
    assert best_fitting(iter([SLAB, CROSS, BALL]), outlines, RESOLUTION) is shape
    assert max(scores) > 0.8 and sorted(scores)[-2] < max(scores) - 0.1


def test_nothing_to_see_has_no_say():
    seen_from, views = cameras(2), photographs(BALL, cameras(2))
    for blank in (views[0].convert("RGB"), Image.new("RGBA", (SIDE, SIDE))):
        alone = Outlines([views[0]], seen_from[:1]).agreement(SLAB, RESOLUTION)
        assert Outlines([views[0], blank], seen_from).agreement(SLAB, RESOLUTION) == alone
        assert Outlines([blank, blank], seen_from).agreement(SLAB, RESOLUTION) == 0
    outlines = Outlines(views, seen_from)
    assert outlines.agreement(SLAB[:0], RESOLUTION) == 0
    assert best_fitting(iter([SLAB[:0], BALL]), outlines, RESOLUTION) is BALL


def test_a_camera_among_the_voxels_is_no_error():
    inside = cameras(1)
    extrinsics = inside.extrinsics.clone()
    extrinsics[:, :3, 3] = torch.tensor([0.0, 0.0, 0.01])
    lost = Cameras(extrinsics, inside.intrinsics, inside.image_size)
    assert 0 <= Outlines(photographs(BALL, inside), lost).agreement(BALL, RESOLUTION) <= 1


def test_the_usual_sample_stays_unless_another_fits_clearly_better():
    class Scores:
        def __init__(self, *scores):
            self.scores = iter(scores)

        def agreement(self, coords, resolution):
            return next(self.scores)

    def kept(*scores):
        return best_fitting(iter("abc"), Scores(*scores), RESOLUTION)

    assert kept(0.70, 0.71, 0.715) == "a" and kept(0.70, 0.73, 0.725) == "b" and kept(0.70, 0.71, 0.74) == "c"
