"""Cameras that are off by tens of degrees are turned back by the silhouettes, or by the shape they show."""

from __future__ import annotations

import pytest
import torch
from nvdiffrec_shapes import bumpy_ball, patterned_material, photographs, ring

from nvdiffrec import coherence, placement
from nvdiffrec.asset import Asset
from nvdiffrec.camera_fit import pose_errors
from nvdiffrec.coherence import Place, make_coherent
from nvdiffrec.free_shape import free_shape
from nvdiffrec.from_scratch import GridSettings
from nvdiffrec.optimise import score_asset
from nvdiffrec.placement import place_around
from nvdiffrec.registration import _proxy
from nvdiffrec.views import Views
from trellis.renderers.cameras import Cameras

CENTER = torch.zeros(3)


@pytest.fixture(scope="module")
def asset() -> Asset:
    """No two sides of it look alike."""
    ball = bumpy_ball(3, bumps=0.2)
    stretched = ball.vertices * torch.tensor([1.0, 0.5, 1.2])
    leaning = stretched + 0.5 * stretched[:, [2]] * torch.tensor([1.0, 0.3, 0.0])
    return Asset(ball.with_vertices(leaning), patterned_material())


@pytest.fixture(scope="module")
def views(asset) -> Views:
    return photographs(asset.geometry, asset.material, None, ring(8))


def carried(views: Views, azimuths: list[float], elevations: list[float]) -> Views:
    places = [
        Place(extrinsics).moved(azimuth, up, CENTER).extrinsics
        for extrinsics, azimuth, up in zip(views.cameras.extrinsics, azimuths, elevations, strict=True)
    ]
    return views.with_cameras(Cameras(torch.stack(places), views.cameras.intrinsics, views.cameras.image_size))


def test_a_carried_camera_stays_level_and_keeps_the_middle_in_its_place(views):
    before, after = views.cameras, carried(views, [40.0] * 8, [10.0] * 8).cameras
    middle = torch.tensor([0.0, 0, 0, 1])
    torch.testing.assert_close(after.extrinsics @ middle, before.extrinsics @ middle, atol=1e-5, rtol=0)
    assert float(after.rotations[:, 0, 2].abs().max()) < 1e-5
    assert 39 < float(pose_errors(after, before)[0].median()) < 42


def test_silhouettes_turn_cameras_back(views):
    wrong = carried(views, [0, 24, -15, 0, 10, -24, 0, 12], [5, -8, 0, 10, -5, 0, 8, 0])
    found = make_coherent(wrong, CENTER, 1.0)
    before, after = pose_errors(wrong.cameras, views.cameras), pose_errors(found.cameras, views.cameras)
    assert float(after[0].median()) < 0.6 * float(before[0].median())
    assert float(after[0].max()) < float(before[0].max())


def test_a_view_is_found_around_a_shape(asset, views):
    wrong = carried(views, [0, 0, 45, 0, 0, 0, 0, 0], [0, 0, 15, 0, 0, 0, 0, 0])
    found = place_around(wrong, _proxy(asset), [2])
    angle, shift, _ = pose_errors(found.cameras, views.cameras)
    assert float(angle[2]) < 3 and float(shift[2]) < 0.05
    assert float(angle[[0, 1, 3]].max()) == 0


def test_estimated_cameras_start_from_the_silhouettes_where_the_asset_is_far_off(views, monkeypatch):
    for name, value in (("_AZIMUTHS", (20.0, 10.0)), ("_ELEVATIONS", (0.0, 1.0)), ("_KEPT", 1)):
        monkeypatch.setattr(placement, name, value)
    monkeypatch.setattr(coherence, "_SWEEPS", coherence._SWEEPS[1:3])
    wrong = carried(views, [0, 14, -10, 0, 10, -14, 0, 12], [0] * 8)
    estimated = Views(wrong.cameras, wrong.images, wrong.masks, wrong.names, predicted=True)
    ball = bumpy_ball(2, bumps=0.0)
    asset = Asset(ball.with_vertices(0.6 * ball.vertices), patterned_material())
    told = []
    start, placed = free_shape(estimated, asset, GridSettings(steps=14, cells=20, resolution=40), texture_size=64,
                               callback=lambda share, loss: told.append(share))  # fmt: skip
    assert told == sorted(told) and told[-1] == 1
    before, after = score_asset(asset, estimated), score_asset(start, placed)
    assert after[3].held_out and after[3].iou > before[3].iou + 0.1 and after[3].object_psnr > before[3].object_psnr + 2
