"""Refining from the engine's side: the job, its stages, events and files, cancelling, and going on after a crash."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from nvdiffrec_shapes import write_scene
from PIL import Image
from scipy.spatial.transform import Rotation
from studio_settings import QUICK_REFINEMENT as QUICK
from tiny_checkpoint import tiny_views
from typer.testing import CliRunner

from nvdiffrec.camera_fit import pose_errors
from nvdiffrec.hdr import read_hdr
from nvdiffrec.registration import register
from nvdiffrec.similarity import IDENTITY
from nvdiffrec.view_files import load_views
from studio import refine_stages
from studio.cache import StageCache
from studio.cli import app
from studio.events import Cancelled, Note
from studio.job import make_job
from studio.refine_events import Refined, RefineProgress
from studio.refine_job import make_refine_job
from studio.refine_runner import run_refine
from studio.refine_settings import RefineSettings
from studio.report import sha256, write_json
from studio.runner import run_job
from studio.settings import make_settings
from studio.view_cameras import view_camera
from studio.write import camera_record
from trellis.errors import InputError
from trellis.renderers.cameras import Cameras


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """A folder with asset.glb (a plain grey ball), and transforms.json for images/ of a bumpy, coloured one."""
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def finished(scene, engine, tmp_path_factory) -> tuple[Refined, list]:
    """One refinement run to its end, and what it told."""
    told: list = []
    job = make_refine_job(scene / "asset.glb", QUICK, tmp_path_factory.mktemp("refined") / "out", cameras=scene)
    return run_refine(job, engine, emit=told.append), told


def test_every_stage_tells_its_steps(finished):
    result, told = finished
    stages = list(dict.fromkeys(event.stage for event in told))
    assert stages == [stage.name for stage in refine_stages.STAGES]
    steps = [event for event in told if event.stage == "optimise" and event.loss is not None]
    assert [event.step for event in steps] == list(range(1, 21)) and steps[-1].of == 20
    scored = [event for event in steps if event.psnr is not None]
    assert len(scored) == 10 and all(event.preview.startswith(b"\xff\xd8") for event in scored)
    assert not any(isinstance(event, Note) for event in told) and result.notes == ()


def test_the_folder_holds_everything_that_is_promised(finished):
    result, _ = finished
    assert result.helped and result.message.startswith("Refining helped: from ")
    mesh = trimesh.load(result.mesh, force="mesh")
    assert np.isfinite(mesh.vertices).all() and mesh.visual.material.metallicRoughnessTexture is not None
    assert len(load_views(result.folder).cameras) == 6
    assert read_hdr(result.environment).shape == (16, 32, 3)
    assert set(result.relit) == {"lebombo", "studio_small_03", "venice_sunset"}
    assert all(film.stat().st_size > 500 for film in result.relit.values())
    for view in result.views:
        pictures = [np.asarray(Image.open(file).convert("RGB")) for file in (view.photo, view.before, view.after)]
        assert all(picture.shape == (64, 64, 3) for picture in pictures)
        assert np.abs(pictures[1].astype(int) - pictures[2]).max() > 10
        assert view.psnr_after > view.psnr_before
    assert [view.held_out for view in result.views] == [i == 3 for i in range(6)]


def test_run_json_records_the_table_and_every_file(finished, scene):
    result, _ = finished
    record = json.loads(result.run.read_text())
    assert record["kind"] == "refine" and record["helped"] and record["message"] == result.message
    assert record["asset"]["sha256"] == sha256(scene / "asset.glb")
    present = {file.relative_to(result.folder).as_posix() for file in result.folder.rglob("*") if file.is_file()}
    assert set(record["files"]) == present - {"run.json"}
    assert all(sha256(result.folder / name) == digest for name, digest in record["files"].items())
    line = record["views"][3]
    assert line["held_out"] and line["file"] == "views/003.png" and line["psnr_after"] > line["psnr_before"]
    held = record["mean"]["held_out"]
    assert held["after"]["psnr"] == pytest.approx(line["psnr_after"], abs=1e-3)
    assert make_settings({}, QUICK).model_dump(mode="json") == record["settings"]


def test_a_refinement_can_be_refined_again(finished, engine, tmp_path):
    job = make_refine_job(finished[0].folder, QUICK, tmp_path / "again")
    assert [view.name for view in job.views] == [f"{i:03d}" for i in range(6)]
    assert run_refine(job, engine).views[0].placed


def test_what_cannot_be_made_better_comes_back_byte_by_byte(scene, engine, tmp_path):
    job = make_refine_job(scene / "right" / "asset.glb", QUICK, tmp_path / "out", cameras=scene / "right")
    result = run_refine(job, engine)
    assert not result.helped and "did not help" in result.message and "unchanged" in result.message
    assert result.mesh.read_bytes() == job.asset.read_bytes() and result.environment is None
    assert all(view.psnr_before == view.psnr_after for view in result.views)


@pytest.mark.parametrize("frames", [0, 2])
def test_a_refined_asset_comes_without_videos_too(scene, engine, tmp_path, monkeypatch, frames):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    settings = make_settings({"video_frames": frames}, QUICK)
    result = run_refine(make_refine_job(scene / "asset.glb", settings, tmp_path / "out", cameras=scene), engine)
    assert result.helped and result.relit == {} and result.mesh.is_file()
    assert [("ffmpeg" in note) for note in result.notes] == ([True] if frames else [])


def test_a_finished_loop_is_not_run_again(scene, engine, tmp_path):
    cache = StageCache(tmp_path / "cache")
    first = run_refine(make_refine_job(scene / "asset.glb", QUICK, tmp_path / "a", cameras=scene), engine, cache=cache)
    longer = make_settings({"video_frames": 3}, QUICK)
    again = run_refine(make_refine_job(scene / "asset.glb", longer, tmp_path / "b", cameras=scene), engine, cache=cache)
    assert first.cached == () and again.cached == ("register", "optimise")
    assert again.mesh.read_bytes() == first.mesh.read_bytes()


def test_cancelling_keeps_the_best_so_far(scene, engine, tmp_path):
    stop = threading.Event()

    def watch(event):
        if event.stage == "optimise" and event.step == 12:
            stop.set()

    job = make_refine_job(scene / "asset.glb", QUICK, tmp_path / "out", cameras=scene)
    result = run_refine(job, engine, emit=watch, cancelled=stop.is_set)
    assert result.cancelled and result.helped and result.relit == {} and "stopped early" in result.notes[0]
    assert json.loads(result.run.read_text())["cancelled"] and result.mesh.is_file()


@pytest.mark.parametrize("stage", ["open", "optimise"])
def test_cancelling_before_there_is_anything_to_keep_leaves_no_files(scene, engine, tmp_path, stage):
    stop = threading.Event()
    settings = make_settings({"geometry": "volume"}, QUICK)  # whose first steps are those of a grid

    def watch(event):
        if event.stage == stage:
            stop.set()

    with pytest.raises(Cancelled):
        run_refine(make_refine_job(scene / "asset.glb", settings, tmp_path / "out", cameras=scene), engine, emit=watch,
                   cancelled=stop.is_set)  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_an_interrupted_loop_goes_on_where_its_state_was_saved(scene, engine, tmp_path):
    cache = StageCache(tmp_path / "cache")

    class Crash(Exception):
        pass

    def crash(event):
        if event.stage == "optimise" and event.step == 13:
            raise Crash

    job = make_refine_job(scene / "asset.glb", QUICK, tmp_path / "out", cameras=scene)
    with pytest.raises(Crash):
        run_refine(job, engine, emit=crash, cache=cache)
    assert not (tmp_path / "out").exists()
    told: list = []
    result = run_refine(job, engine, emit=told.append, cache=cache)
    assert "goes on from its saved state" in next(event.message for event in told if isinstance(event, Note))
    steps = [e.step for e in told if isinstance(e, RefineProgress) and e.loss is not None]
    assert steps == list(range(13, 21)) and result.helped
    assert not list(cache.folder.glob("*-state*"))


def test_free_topology_and_corrected_cameras(scene, engine, tmp_path, monkeypatch):
    monkeypatch.setattr("nvdiffrec.placement._AZIMUTHS", (20.0, 20.0))
    monkeypatch.setattr("nvdiffrec.coherence._SWEEPS", (((12.0, 12.0), (0.0, 1.0), 1),))
    settings = make_settings({"geometry": "volume", "correct_cameras": True, "registration": "keep"}, QUICK)
    result = run_refine(make_refine_job(scene / "asset.glb", settings, tmp_path / "out", cameras=scene), engine)
    before, after = load_views(scene).cameras, load_views(result.folder).cameras
    assert len(result.views) == 6 and (not result.helped or not torch.allclose(before.extrinsics, after.extrinsics))


def run_folder(scene: Path, folder: Path, stated: list[int], wrong: float = 0.0) -> Path:
    """The scene as a finished run with the cameras of some views stated; those of the others are wrong by an angle."""
    views = load_views(scene)
    extrinsics = views.cameras.extrinsics.clone()
    turn = torch.from_numpy(Rotation.from_euler("z", wrong, degrees=True).as_matrix()).float()
    for index in set(range(len(views))) - set(stated):
        extrinsics[index, :3, :3] @= turn
    cameras = Cameras(extrinsics, views.cameras.intrinsics, views.cameras.image_size)
    names = [f"views/{index:03d}.png" for index in range(len(views))]
    shutil.copytree(scene / "images", folder / "views")
    shutil.copyfile(scene / "asset.glb", folder / "mesh.glb")
    edits = [view_camera(cameras, index) if index in stated else None for index in range(len(views))]
    write_json(folder / "transforms.json", camera_record(cameras, names, "object", edits))
    write_json(folder / "run.json", {"views": [{"name": name, "file": name} for name in names]})
    return folder


def test_cameras_that_were_all_stated_are_trusted(scene, engine, tmp_path, monkeypatch):
    monkeypatch.setattr("nvdiffrec.registration.register", lambda *_, **__: pytest.fail("they were looked for"))
    run = run_folder(scene, tmp_path / "run", list(range(6)))
    result = run_refine(make_refine_job(run, QUICK, tmp_path / "out"), engine)
    before, after = load_views(run).cameras, load_views(result.folder).cameras
    torch.testing.assert_close(after.extrinsics, before.extrinsics, atol=1e-6, rtol=0)
    assert result.helped and "stated, so they are kept as they are" in result.notes[0]
    again = load_views(result.folder)
    assert again.registered and not again.predicted
    # Whoever wants can still have them corrected.
    settings = make_settings({"correct_cameras": True}, QUICK)
    result = run_refine(make_refine_job(run, settings, tmp_path / "corrected"), engine)
    assert result.helped and result.notes == ()
    assert not torch.allclose(load_views(result.folder).cameras.extrinsics, before.extrinsics, atol=1e-4)


def test_a_refinement_starts_from_cameras_of_which_some_were_edited(scene, engine, tmp_path, monkeypatch):
    run = run_folder(scene, tmp_path / "run", [0, 3, 4], wrong=4.0)
    before, starts = load_views(run).cameras, []

    def followed(views, asset, guess, seed=0, **options):
        starts.append((views.cameras, guess, options["search"]))
        return register(views, asset, guess, seed, **options)

    monkeypatch.setattr("nvdiffrec.registration.register", followed)
    result = run_refine(make_refine_job(run, QUICK, tmp_path / "out"), engine)
    assert result.helped and all(view.placed for view in result.views) and result.notes == ()
    ((cameras, guess, search),) = starts
    torch.testing.assert_close(cameras.extrinsics, before.extrinsics, atol=1e-6, rtol=0)
    assert guess is IDENTITY and not search
    after = load_views(result.folder).cameras
    angles = pose_errors(after, before)[0]  # a grey ball hardly tells how it is turned
    assert angles.max() < 40 and angles.median() < 20 and angles.min() > 0.01
    record = json.loads((result.folder / "transforms.json").read_text())
    assert record["predicted_by"] == "VGGT, corrected"


def test_stated_cameras_that_see_something_else_end_with_a_sentence(scene, engine, tmp_path):
    run = run_folder(scene, tmp_path / "run", list(range(6)))
    record = json.loads((run / "transforms.json").read_text())
    for frame in record["frames"]:
        frame["transform_matrix"][1][3] += 1.5
    write_json(run / "transforms.json", record)
    with pytest.raises(InputError, match="with registration 'search'"):
        run_refine(make_refine_job(run, QUICK, tmp_path / "out"), engine)


def test_photos_are_matched_to_their_cameras_by_name(scene, engine, tmp_path):
    photos = sorted((scene / "images").iterdir(), reverse=True)[:4]
    for number, photo in enumerate(photos):
        Image.open(photo).save(tmp_path / photo.name)
        photos[number] = tmp_path / photo.name
    job = make_refine_job(scene / "asset.glb", QUICK, tmp_path / "out", views=photos, cameras=scene / "transforms.json")
    views = refine_stages.open_views(job.views, job.cameras, QUICK, engine.pipeline, lambda *_, **__: None)
    assert views.names == tuple(photo.name for photo in photos)
    expected = load_views(scene).subset([5, 4, 3, 2])
    torch.testing.assert_close(views.cameras.extrinsics, expected.cameras.extrinsics)
    (tmp_path / "other.png").write_bytes(photos[0].read_bytes())
    job = make_refine_job(scene / "asset.glb", QUICK, tmp_path / "out", views=[*photos, tmp_path / "other.png"],
                          cameras=scene / "transforms.json")  # fmt: skip
    with pytest.raises(InputError, match="no camera for 'other.png'"):
        run_refine(job, engine)


def test_a_run_is_refined_with_its_photographs_pixels(engine, quick, tmp_path):
    """An earlier version kept what the networks saw alone; both lie around the asset as before."""
    run_job(make_job(tiny_views(2, size=400), quick, tmp_path / "run"), engine)
    settings, found = make_settings({"resolution": 128}, QUICK), []
    for folder in ("photos", "views"):
        job = make_refine_job(tmp_path / "run", settings, tmp_path / "out")
        assert [view.source.parent.name for view in job.views] == [folder] * 2
        found.append(refine_stages.open_views(job.views, job.cameras, settings, engine.pipeline, lambda *_, **__: None))
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        for view in record["views"]:
            view.pop("photo", None)
        write_json(tmp_path / "run" / "run.json", record)
    sharp, seen = found
    assert sharp.images[0].shape == (3, 128, 128) and seen.images[0].shape == (3, 56, 56)
    torch.testing.assert_close(sharp.cameras.extrinsics, seen.cameras.extrinsics)
    torch.testing.assert_close(sharp.cameras.normalised_intrinsics, seen.cameras.normalised_intrinsics)
    assert abs(float(sharp.masks[0].mean() - seen.masks[0].mean())) < 0.02


def test_photos_without_cameras_get_those_that_the_networks_estimate(scene, engine):
    photos = make_refine_job(scene / "asset.glb", QUICK, "unused", views=scene / "images").views
    views = refine_stages.open_views(photos, None, QUICK, engine.pipeline, lambda *_, **__: None)
    assert views.predicted and len(views) == 6
    # They are compared with more pixels than the networks see, which is 56.
    photos = make_refine_job(scene / "asset.glb", QUICK, "unused", views=tiny_views(2, size=400)).views
    views = refine_stages.open_views(photos, None, QUICK, engine.pipeline, lambda *_, **__: None)
    assert [tuple(image.shape) for image in views.images] == [(3, 64, 64)] * 2


def test_bad_input_is_refused_with_a_sentence(scene, engine, tmp_path):
    asset = scene / "asset.glb"
    with pytest.raises(InputError, match="needs photographs"):
        make_refine_job(asset, QUICK, tmp_path)
    with pytest.raises(InputError, match="at least two views"):
        make_refine_job(asset, QUICK, tmp_path, views=[scene / "images" / "000.png"])
    with pytest.raises(InputError, match="no asset"):
        make_refine_job(tmp_path / "none.glb", QUICK, tmp_path, cameras=scene)
    with pytest.raises(InputError, match="binary glTF"):
        make_refine_job(scene / "transforms.json", QUICK, tmp_path, cameras=scene)
    with pytest.raises(InputError, match="no cameras at"):
        make_refine_job(asset, QUICK, tmp_path, cameras=tmp_path / "none.json")
    with pytest.raises(InputError, match="run.json cannot be read"):
        make_refine_job(scene, QUICK, tmp_path)
    nothing = {"geometry": "fixed", "material": False, "light": False}
    with pytest.raises(InputError, match="Nothing is to be fitted"):
        run_refine(make_refine_job(asset, make_settings(nothing, QUICK), tmp_path, cameras=scene), engine)
    with pytest.raises(InputError, match="Steps must be a whole number from 20"):
        make_settings({"steps": 1}, RefineSettings())


def test_the_command_line_refines_through_the_worker(scene, checkpoint, service, monkeypatch, tmp_path):
    from test_cli import SharedService

    monkeypatch.setattr("studio.cli_options.Service", lambda *_, **__: SharedService(service))
    options = [f"--{key.replace('_', '-')}={getattr(QUICK, key)}"
               for key in ("steps", "resolution", "texture_size", "video_frames", "video_size")]  # fmt: skip
    arguments = ["refine", scene / "asset.glb", "--cameras", scene, "-o", tmp_path / "out", "--checkpoint", checkpoint]
    outcome = CliRunner().invoke(app, [*map(str, arguments), "--json", *options])
    assert outcome.exit_code == 0, outcome.output
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert lines[-1]["event"] == "result" and Path(lines[-1]["mesh"]).is_file() and lines[-1]["helped"]
    assert any(line.get("psnr") for line in lines)
    outcome = CliRunner().invoke(app, [*map(str, arguments), "--steps", "3"])
    assert outcome.exit_code == 2 and "Steps must be" in outcome.output
