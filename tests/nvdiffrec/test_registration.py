"""Cameras in a frame of their own come back to the asset, and a wrong one is left out by name."""

from __future__ import annotations

import pytest
import torch
from nvdiffrec_shapes import bumpy_ball, patterned_material, photographs, ring, sky

from nvdiffrec import registration
from nvdiffrec.asset import Asset
from nvdiffrec.camera_fit import pose_errors, rotation_of
from nvdiffrec.light import filter_light
from nvdiffrec.registration import outline_distance, register
from nvdiffrec.similarity import Similarity
from nvdiffrec.views import Views
from trellis.errors import InputError
from trellis.renderers.cameras import Cameras


@pytest.fixture(scope="module")
def asset() -> Asset:
    ball = bumpy_ball(2, bumps=0.15)
    return Asset(ball.with_vertices(ball.vertices * torch.tensor([1.0, 0.6, 1.3])), patterned_material())


@pytest.fixture(scope="module")
def views(asset) -> Views:
    return photographs(asset.geometry, asset.material, filter_light(torch.ones_like(sky())), ring(6))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(registration, "_NUM_ROTATIONS", 150)
    monkeypatch.setattr(registration, "_REFINE_STEPS", 30)
    monkeypatch.setattr(registration, "_KEPT", 2)


def in_a_frame_of_its_own(views: Views) -> Views:
    away = Similarity(rotation_of(torch.tensor([0.4, 1.9, -0.8])), 3.7, torch.tensor([1.0, -2.0, 5.0]))
    return views.with_cameras(away.apply(views.cameras))


def test_cameras_are_placed_from_any_frame_and_scale(asset, views):
    result = register(in_a_frame_of_its_own(views), asset)
    angle, shift, _ = pose_errors(result.views.cameras, views.cameras)
    assert float(angle.max()) < 5 and float(shift.max()) < 0.08
    assert result.message == "" and all(p.placed for p in result.placements)
    assert all(p.iou > 0.9 and p.residual < 2.5 and p.confidence > 0.6 for p in result.placements)


def test_a_view_of_something_else_is_left_out_and_named(asset, views):
    wrong = views.cameras.extrinsics.clone()
    wrong[2, :3, 3] += torch.tensor([0.3, 0.25, 0.0])
    broken = views.with_cameras(Cameras(wrong, views.cameras.intrinsics, views.cameras.image_size))
    identity = Similarity(torch.eye(3), 1.0, torch.zeros(3))
    result = register(broken, asset, guess=identity)
    assert [p.placed for p in result.placements] == [i != 2 for i in range(6)]
    assert result.message == "Left out because they could not be placed: view 2."
    assert len(result.views) == 5


def test_one_view_is_refused(asset, views):
    with pytest.raises(InputError, match="at least two"):
        register(views.subset([0]), asset)


def test_outlines_of_shifted_squares_are_as_far_apart_as_they_were_shifted():
    first, second = torch.zeros(2, 40, 40, dtype=torch.bool)
    first[10:20, 5:35] = True
    assert outline_distance(first, first) == 0
    second[13:23, 5:35] = True
    assert 1.5 < outline_distance(first, second) < 3.1
    assert outline_distance(first, torch.zeros(40, 40, dtype=torch.bool)) > 50
