"""The loop: it helps where it can, says so where it cannot, stops, and resumes to the same numbers."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from kernel_devices import on_gpu
from nvdiffrec_shapes import ball_views, bumpy_ball, patterned_material, photographs, ring, sky

from nvdiffrec.asset import Asset, plain_material
from nvdiffrec.camera_fit import corrected, corrected_cameras, pose_errors, rotation_of
from nvdiffrec.fit import Fit, FitOptions
from nvdiffrec.light import filter_light
from nvdiffrec.optimise import Progress, RefineResult, RefineSettings, held_out_views, refine
from trellis.errors import InputError
from trellis.renderers.cameras import Cameras
from trellis.renderers.mesh_raster import project

SETTINGS = RefineSettings(steps=40, resolution=64, evaluate_every=10)


def start_asset() -> Asset:
    """The ball without its bumps, grey."""
    return Asset(bumpy_ball(3, bumps=0.0), plain_material(torch.full((3, 32, 32), 0.5)))


def run(views, asset, settings=SETTINGS, **options) -> tuple[list[Progress], RefineResult]:
    *progress, result = refine(views, asset, settings, **options)
    return progress, result


def test_refining_a_plain_ball_against_photographs_helps_held_out_views():
    progress, result = run(ball_views(8), start_asset())
    assert result.helped and result.message.startswith("Refining helped")
    assert [p.step for p in progress] == list(range(1, 41))
    assert [p.step for p in progress if p.score is not None] == [10, 20, 30, 40]
    assert progress[-1].preview.shape == (64, 64, 3)
    assert [s.held_out for s in result.after] == [i == 3 for i in range(8)]
    assert result.after[3].object_psnr > result.before[3].object_psnr + 3
    assert result.after[3].iou >= result.before[3].iou
    assert result.asset.environment.shape == (3, 16, 32)


def test_what_is_right_already_comes_back_unchanged():
    asset = Asset(bumpy_ball(3), patterned_material(), sky())
    views = photographs(asset.geometry, asset.material, filter_light(sky()), ring(6))
    _, result = run(views, asset, replace(SETTINGS, steps=10))
    assert not result.helped and "did not help" in result.message
    assert result.asset is asset and result.cameras is views.cameras
    assert result.before == result.after


def test_cancelling_keeps_the_best_state():
    cancel = threading.Event()
    seen = []
    for item in refine(ball_views(6), start_asset(), SETTINGS, cancel=cancel):
        seen.append(item)
        if isinstance(item, Progress) and item.step == 15:
            cancel.set()
    assert seen[-1].cancelled and seen[-1].helped
    assert seen[-2].step == 16 and seen[-2].score is not None


def test_an_interrupted_run_resumes_to_the_same_numbers(tmp_path):
    views, asset = ball_views(6), start_asset()
    settings = replace(SETTINGS, steps=20, fit=FitOptions(cameras=True, exposure=True, normal_map=True))
    _, whole = run(views, asset, settings)
    file = tmp_path / "state.safetensors"
    loop = refine(views, asset, settings, state_file=file)
    for _ in range(13):  # a state was saved at step 10
        next(loop)
    loop.close()
    progress, resumed = run(views, asset, settings, state_file=file)
    assert progress[0].step == 11
    torch.testing.assert_close(resumed.asset.geometry.vertices, whole.asset.geometry.vertices, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(resumed.asset.material.stack, whole.asset.material.stack, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(resumed.cameras.extrinsics, whole.cameras.extrinsics, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="other settings"):
        run(views, asset, replace(settings, steps=30), state_file=file)
    file.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a saved refinement"):
        run(views, asset, settings, state_file=file)


def test_lost_cameras_come_back_with_their_focal_lengths_and_held_out_ones_follow():
    asset = Asset(bumpy_ball(3), patterned_material(), sky())
    views = photographs(asset.geometry, asset.material, filter_light(sky()), ring(6))
    twists = 0.03 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    wrong = corrected_cameras(views.cameras, twists, torch.tensor([0.03, -0.03, 0.03, -0.03, 0.03, -0.03]))
    fit = FitOptions(geometry=False, material=False, light=False, cameras=True)
    _, result = run(views.with_cameras(wrong), asset, replace(SETTINGS, steps=50, evaluate_every=25, fit=fit))
    before, after = pose_errors(wrong, views.cameras), pose_errors(result.cameras, views.cameras)
    assert result.helped
    for old, new in zip(before, after, strict=True):
        assert float(new.median()) < 0.35 * float(old.median())
    assert float(after[0][3]) < float(before[0][3])


def test_a_camera_is_aligned_whatever_the_strength_and_tint_of_the_light():
    asset = Asset(bumpy_ball(3), patterned_material(), sky())
    views = photographs(asset.geometry, asset.material, filter_light(sky()), ring(2))
    wrong = corrected_cameras(views.cameras, torch.tensor([[0.03, -0.02, 0.04, 0.02, 0.01, -0.03]] * 2), torch.zeros(2))
    plain = Asset(asset.geometry, asset.material, 0.6 * sky() * torch.tensor([1.0, 0.8, 0.7])[:, None, None])
    fit = Fit(plain, wrong, FitOptions(geometry=False, cameras=True))
    for _ in range(3):
        fit.align(views.with_cameras(wrong), 0, 4)
    angle, shift, _ = pose_errors(fit.result()[1], views.cameras)
    assert float(angle[0]) < 0.5 and float(shift[0]) < 0.01
    assert float(angle[1]) > 2


def test_a_camera_correction_turns_about_the_object_and_has_gradients_at_zero():
    cameras = ring(2)
    twists, focals = torch.zeros(2, 6, requires_grad=True), torch.zeros(2, requires_grad=True)
    extrinsics, intrinsics = corrected(cameras, 1, twists[1], focals[1])
    torch.testing.assert_close(extrinsics, cameras.extrinsics[1])
    torch.testing.assert_close(intrinsics, cameras.intrinsics[1])
    (extrinsics.square().sum() + extrinsics[0, 1] + intrinsics.sum()).backward()
    assert bool(torch.isfinite(twists.grad).all()) and float(focals.grad[1]) != 0
    longer = corrected_cameras(cameras, torch.zeros(2, 6), torch.full((2,), 0.1))
    middle = torch.zeros(1, 3)
    for before, after in zip(cameras, longer, strict=True):  # a dolly zoom: sizes at the object's middle stay
        for point in (middle, middle + 0.02 * before.rotations[0, 0]):
            seen = [project(point, c.extrinsics[0], c.intrinsics[0])[0, :2] for c in (before, after)]
            torch.testing.assert_close(*seen, atol=1e-3, rtol=0)
    assert float(pose_errors(longer, cameras)[2].min()) > 0.1
    turned = torch.zeros(2, 6)
    turned[:, 0] = 0.3
    moved = corrected_cameras(cameras, turned, torch.zeros(2))
    torch.testing.assert_close(moved.translations, cameras.translations)
    angle, _, _ = pose_errors(moved, cameras)
    torch.testing.assert_close(angle, torch.full((2,), 17.188734), atol=1e-3, rtol=0)
    rotation = rotation_of(torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))


def test_views_of_different_sizes_are_refined_together_and_cameras_keep_their_size():
    views = ball_views(6)
    sizes = torch.tensor([[64, 64], [96, 96], [64, 64], [48, 48], [64, 64], [64, 64]])
    cameras = Cameras.from_normalised(views.cameras.extrinsics, views.cameras.normalised_intrinsics, sizes)
    light = filter_light(sky())
    mixed = photographs(bumpy_ball(), patterned_material(), light, cameras)
    _, result = run(mixed, start_asset(), replace(SETTINGS, steps=12, resolution=48, evaluate_every=12))
    assert torch.equal(result.cameras.image_size, sizes)


def test_held_out_views_start_at_six():
    assert held_out_views(5) == [] and held_out_views(6) == [3] and held_out_views(24) == [3, 11, 19]


def test_one_view_and_impossible_settings_are_refused():
    views = ball_views(2)
    with pytest.raises(InputError, match="at least two views"):
        next(refine(views.subset([0]), start_asset()))
    with pytest.raises(InputError, match="at least 1 step"):
        RefineSettings(steps=0)


@pytest.mark.gpu
@on_gpu
def test_the_loop_comes_to_the_same_on_a_gpu():
    settings = replace(SETTINGS, steps=20, fit=FitOptions(cameras=True, exposure=True, normal_map=True))
    _, here = run(ball_views(6), start_asset(), settings)
    _, there = run(ball_views(6), start_asset(), replace(settings, device="cuda"))
    assert there.asset.geometry.vertices.device.type == "cpu"
    for ours, theirs in zip(here.after, there.after, strict=True):
        assert ours.object_psnr == pytest.approx(theirs.object_psnr, abs=0.5)
        assert ours.iou == pytest.approx(theirs.iou, abs=0.01)
