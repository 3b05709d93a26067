"""Known cameras of photographs, in a frame of their own: aligned with those that are found, kept, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from tiny_checkpoint import tiny_views, write_tiny_checkpoint

from nvdiffrec.similarity import Similarity
from studio.cache import StageCache
from studio.camera_files import read_cameras
from studio.engine import load_engine
from studio.inputs import as_views
from studio.job import Job, job_from_json, make_job
from studio.refine_job import make_refine_job
from studio.refine_settings import RefineSettings
from studio.refine_stages import open_views
from studio.replay import differences, job_of_run, read_run, revise
from studio.runner import run_job
from trellis.errors import InputError
from trellis.renderers.camera_formats import from_transforms, to_colmap_text, to_transforms
from trellis.renderers.cameras import Cameras

NAMES = ["a.png", "b.png", "c.png"]
SIZE = 90, 140  # height and width of the photos
AWAY = Similarity(torch.from_numpy(Rotation.from_rotvec([1.0, -2.0, 0.5]).as_matrix()).float(), 7.3,
                  torch.tensor([3.0, -5.0, 20.0]))  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> StageCache:
    return StageCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Three wide photographs with the object at their right edge."""
    folder = tmp_path_factory.mktemp("photos")
    for name, view in zip(NAMES, tiny_views(3, size=80), strict=True):
        photo = Image.new("RGBA", (SIZE[1], SIZE[0]))
        photo.paste(view, (50, 5))
        photo.save(folder / name)
    return [folder / name for name in NAMES]


@pytest.fixture(scope="module")
def found(photos, engine, quick, cache, tmp_path_factory) -> Path:
    """A run with the cameras that the networks found."""
    folder = tmp_path_factory.mktemp("found") / "run"
    run_job(make_job(photos, quick, folder), engine, cache=cache)
    return folder


def cameras_of(folder: Path) -> Cameras:
    return from_transforms(json.loads((folder / "transforms.json").read_text()))[0]


def taken(folder: Path) -> Cameras:
    """The cameras of whole photographs, in a frame far away, whose views' cameras are those of a run."""
    cameras = AWAY.apply(cameras_of(folder))
    intrinsics = cameras.normalised_intrinsics.clone()
    for index, view in enumerate(json.loads((folder / "run.json").read_text())["views"]):
        left, top, width, height = view["crop"]
        grow = torch.tensor([[width, 1, width], [1, height, height], [1, 1, 1]])
        intrinsics[index] = intrinsics[index] * grow + torch.tensor([[0, 0, left], [0, 0, top], [0, 0, 0]])
    return Cameras.from_normalised(cameras.extrinsics, intrinsics, torch.tensor([SIZE]).expand(len(cameras), 2))


def job_with(photos: list[Path], cameras: Cameras, quick, out: Path) -> Job:
    file = out.parent / f"{out.name}.json"
    file.write_text(json.dumps(to_transforms(cameras, [f"photos/{photo.name}" for photo in photos], frame="object")))
    views = as_views(photos)
    stated = read_cameras(file, [view.name for view in views])
    return make_job([replace(view, camera=camera) for view, camera in zip(views, stated, strict=True)], quick, out)


def test_cameras_of_another_frame_are_brought_around_the_model(photos, found, engine, quick, cache, tmp_path):
    out = tmp_path / "out"
    result = run_job(job_with(photos, taken(found), quick, out), engine, cache=cache)
    assert {"structure", "decode", "mesh"} <= set(result.cached)
    before, after = cameras_of(found), cameras_of(out)
    torch.testing.assert_close(after.extrinsics, before.extrinsics, atol=2e-3, rtol=0)
    torch.testing.assert_close(after.normalised_intrinsics, before.normalised_intrinsics, atol=1e-4, rtol=0)
    (note,) = result.notes
    assert note.startswith("The stated cameras were aligned") and "differ by 0.0 degrees and 0% of the distance" in note
    transforms = json.loads((out / "transforms.json").read_text())
    assert transforms["predicted_by"] is None and transforms["aligned_to"] == "VGGT"
    # A refinement leaves them as they are to each other, and may have to look for where they stand.
    job = make_refine_job(out, RefineSettings(), tmp_path / "better")
    views = open_views(job.views, job.cameras, RefineSettings(), engine.pipeline, lambda *_, **__: None)
    assert not views.predicted and not views.registered
    # The record keeps them where they were brought.
    record, folder = read_run(out)
    run_job(job_of_run(record, folder, tmp_path / "again", use_cache=False), engine)
    assert differences(record, read_run(tmp_path / "again")[0]) == []


def test_a_finished_run_takes_them_too_and_colmap_says_the_same(photos, found, engine, quick, cache, tmp_path):
    cameras = taken(found)
    turned = cameras.extrinsics.clone()
    turned[0, :3, 3] *= 1.02
    cameras = Cameras(turned, cameras.intrinsics, cameras.image_size)
    run_job(job_with(photos, cameras, quick, tmp_path / "one"), engine, cache=cache)
    (tmp_path / "sparse").mkdir()
    for name, text in zip(("cameras", "images"), to_colmap_text(cameras, NAMES), strict=True):
        (tmp_path / "sparse" / f"{name}.txt").write_text(text)
    stated = read_cameras(tmp_path, NAMES)
    run_job(revise(found, {}, tmp_path / "two", cameras=stated), engine, cache=cache)
    torch.testing.assert_close(cameras_of(tmp_path / "one").extrinsics, cameras_of(tmp_path / "two").extrinsics,
                               atol=1e-3, rtol=0)  # fmt: skip
    assert not torch.allclose(cameras_of(tmp_path / "two").extrinsics, cameras_of(found).extrinsics, atol=1e-3)
    record, folder = read_run(found)
    del record["views"][1]["crop"]
    with pytest.raises(InputError, match=r"what 'b\.png' shows"):
        run_job(job_of_run(record, folder, tmp_path / "three", cameras=stated), engine, cache=cache)


def test_cameras_of_other_photos_are_refused_before_anything_is_sampled(
    photos, found, engine, quick, cache, tmp_path, monkeypatch
):
    monkeypatch.setattr("trellis.pipelines.samplers.FlowEulerGuidanceIntervalSampler.iterate",
                        lambda *_: pytest.fail("a sampler ran"))  # fmt: skip
    cameras = taken(found)
    extrinsics = cameras.extrinsics.clone()
    turns = Rotation.from_euler("x", [[0], [120], [240]], degrees=True).as_matrix()
    extrinsics[:, :3] = torch.from_numpy(turns).float() @ extrinsics[:, :3]
    strangers = Cameras(extrinsics, cameras.intrinsics, cameras.image_size)
    with pytest.raises(InputError, match="do not belong to these photos in this order") as refused:
        run_job(job_with(photos, strangers, quick, tmp_path / "out"), engine, cache=cache)
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()
    narrow = Cameras(cameras.extrinsics, cameras.intrinsics, cameras.image_size.flip(1))
    with pytest.raises(InputError, match=r"camera of 'a\.png' is for a picture 0\.643 times as wide"):
        run_job(job_with(photos, narrow, quick, tmp_path / "out"), engine, cache=cache)


@pytest.mark.parametrize(("count", "sentence"), [(1, "only its lens was taken over"), (2, "With two photos nothing")])
def test_one_or_two_photos_say_how_little_that_is(photos, engine, quick, cache, tmp_path, count, sentence):
    run_job(make_job(photos[:count], quick, tmp_path / "found"), engine, cache=cache)
    cameras = taken(tmp_path / "found")
    job = job_with(photos[:count], cameras, quick, tmp_path / "out")
    assert sentence in run_job(job, engine, cache=cache).notes[0]
    expected = cameras_of(tmp_path / "found").extrinsics
    torch.testing.assert_close(cameras_of(tmp_path / "out").extrinsics, expected, atol=2e-3, rtol=0)


def test_networks_that_do_not_place_the_photos_cannot_place_cameras_of_another_frame(photos, found, quick, tmp_path):
    engine = load_engine(str(write_tiny_checkpoint(tmp_path / "tiny", camera_frame="first_view")), "cpu")
    with pytest.raises(InputError, match="give these to a refinement"):
        run_job(job_with(photos, taken(found), quick, tmp_path / "out"), engine)


POSE = np.eye(4).tolist()


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        ({"w": 140, "h": 90, "fl_x": 100.0, "k1": 0.1}, "lens distortion"),
        ({"fl_x": 100.0}, "finite number as w"),
        ({"camera_angle_x": 0.0}, "finite number as w"),
        ({"camera_angle_x": 3.14}, "field of view"),
        ({"w": 140, "h": 90, "fl_x": 100.0, "transform_matrix": 3}, "4 rows of 4"),
        ({"w": 140, "h": 90, "fl_x": 100.0, "transform_matrix": [[1e9, 0, 0, 0], *POSE[1:]]}, "too large"),
    ],
)
def test_broken_cameras_of_photos_are_refused_in_one_sentence(frame, sentence):
    record = {"frames": [{"file_path": "a", "transform_matrix": POSE, **frame}]}
    with pytest.raises(InputError, match=r"^The camera of 'a\.png'") as refused:
        job_from_json({"views": ["a.png"], "out": "out", "cameras": record})
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_a_rendering_may_state_one_angle_for_pictures_of_any_size(tmp_path):
    file = tmp_path / "transforms.json"
    file.write_text(json.dumps({"camera_angle_x": 0.8, "frames": [{"file_path": "./a", "transform_matrix": POSE}]}))
    (camera,) = read_cameras(tmp_path, ["a.png"])
    view = camera.of_view((0.25, 0.0, 0.5, 0.75), "it")  # half as wide and three quarters as high: of 3 by 2
    assert view.lens == pytest.approx((1 / np.tan(0.4), 1 / np.tan(0.4), 0.5, 0.5 / 0.75))
