"""Cameras that a person states: what they change, that they are kept, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import tiny_views, write_tiny_checkpoint
from typer.testing import CliRunner

from studio.batch import is_finished
from studio.cache import StageCache
from studio.camera_files import read_cameras
from studio.cli import app
from studio.engine import load_engine
from studio.inputs import View
from studio.job import job_from_json, make_job
from studio.photo_cameras import PhotoCamera
from studio.refine_job import make_refine_job
from studio.refine_settings import RefineSettings
from studio.refine_stages import open_views
from studio.replay import differences, job_of_run, read_run, revise
from studio.runner import run_job
from studio.settings import make_settings
from studio.view_cameras import camera_of_frame
from trellis.errors import InputError
from trellis.renderers.camera_formats import from_transforms


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> StageCache:
    return StageCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def finished(engine, quick, cache, tmp_path_factory) -> Path:
    """The folder of a run whose texture is painted from its three photographs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_job(
        make_job(tiny_views(3), make_settings({"texture_source": "photographs"}, quick), folder), engine, cache=cache
    )
    return folder


@pytest.fixture
def no_sampling(monkeypatch) -> None:
    monkeypatch.setattr("trellis.pipelines.samplers.FlowEulerGuidanceIntervalSampler.iterate",
                        lambda *_: pytest.fail("a sampler ran"))  # fmt: skip


def turned(frame: dict, degrees: float = 25.0) -> dict:
    """A camera taken round the vertical axis (y)."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]])
    return {**frame, "transform_matrix": (turn @ np.array(frame["transform_matrix"])).tolist()}


def frames_of(folder: Path) -> list[dict]:
    """The frames of a run's transforms.json, each with its lens."""
    record = json.loads((folder / "transforms.json").read_text())
    shared = {key: record[key] for key in ("w", "h", "fl_x", "fl_y", "cx", "cy") if key in record}
    return [{**shared, **frame} for frame in record["frames"]]


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_an_edited_camera_bakes_and_reports_again_and_samples_nothing(finished, engine, cache, tmp_path, no_sampling):
    edited = camera_of_frame(turned(frames_of(finished)[1]), "it")
    result = run_job(revise(finished, {}, tmp_path / "out", cameras=[None, edited, None]), engine, cache=cache)
    after, before = record_of(tmp_path / "out"), record_of(finished)
    assert set(after["seconds"]) - {"prepare"} == {"paint", "bake", "video", "report", "write", "total"}
    assert result.notes == ("The camera of photo 2 was set by hand; the shape does not depend on that.",)
    for name, same in (
        ("gaussian.ply", False),
        ("turntable.mp4", False),
        ("mesh.glb", False),
        ("transforms.json", False),
    ):
        assert (after["files"][name] == before["files"][name]) == same, name
    # The others keep their cameras, and every picture and score of them but for what the new texture changes.
    old, new = (
        np.array([frame["transform_matrix"] for frame in frames_of(run)]) for run in (finished, tmp_path / "out")
    )
    assert np.array_equal(old[[0, 2]], new[[0, 2]]) and np.allclose(new[1], edited.pose, atol=1e-6)
    assert not np.allclose(old[1], new[1], atol=0.1)
    seen = [record["quality"]["coverage"]["observed_by_view"] for record in (before, after)]
    assert seen[0][0] == seen[1][0] and seen[0][1] != seen[1][1]
    assert [view["camera"] is None for view in after["views"]] == [True, False, True]
    found = camera_of_frame(after["views"][1]["camera"]["found"], "it")
    assert np.allclose(found.pose, old[1], atol=1e-6)


def test_edited_cameras_are_kept_by_later_changes_and_by_a_replay(finished, engine, cache, tmp_path):
    out = tmp_path / "out"
    edited = camera_of_frame(turned(frames_of(finished)[2], -15), "it")
    run_job(revise(finished, {}, out, cameras=[None, None, edited]), engine, cache=cache)
    cameras = (out / "transforms.json").read_bytes()
    run_job(revise(out, {"texture_size": 768}), engine, cache=cache)
    assert (out / "transforms.json").read_bytes() == cameras
    record, folder = read_run(out)
    run_job(job_of_run(record, folder, tmp_path / "again", use_cache=False), engine)
    assert differences(record, record_of(tmp_path / "again")) == []
    # Taken back, everything is as it was.
    run_job(revise(out, {"texture_size": 512}, cameras=[None] * 3), engine, cache=cache)
    assert differences(record_of(finished), record_of(out)) == []


def test_a_refinement_starts_from_the_edited_cameras(finished, engine, cache, tmp_path):
    edited = camera_of_frame(turned(frames_of(finished)[0]), "it")
    run_job(revise(finished, {}, tmp_path / "out", cameras=[edited, None, None]), engine, cache=cache)
    job = make_refine_job(tmp_path / "out", RefineSettings(), tmp_path / "better")
    cameras, _ = from_transforms(json.loads(job.cameras.read_text()))
    assert np.allclose(np.array(edited.pose)[:3, 3] @ [[1, 0, 0], [0, 0, 1], [0, -1, 0]], cameras.centers[0], atol=1e-5)
    views = open_views(job.views, job.cameras, RefineSettings(), engine.pipeline, lambda *_, **__: None)
    assert views.predicted and not views.registered  # the others still want correcting
    every = [camera_of_frame(turned(frame), "it") for frame in frames_of(finished)]
    run_job(revise(finished, {}, tmp_path / "out", cameras=every), engine, cache=cache)
    job = make_refine_job(tmp_path / "out", RefineSettings(), tmp_path / "better")
    views = open_views(job.views, job.cameras, RefineSettings(), engine.pipeline, lambda *_, **__: None)
    assert views.registered and not views.predicted


def test_a_camera_that_is_the_one_found_is_no_edit(finished, engine, cache, tmp_path):
    """As where one camera of a whole transforms.json was edited."""
    frames = frames_of(finished)
    stated = [camera_of_frame(frame, "it") for frame in (frames[0], turned(frames[1]), frames[2])]
    run_job(revise(finished, {}, tmp_path / "out", cameras=stated), engine, cache=cache)
    assert [view["camera"] is None for view in record_of(tmp_path / "out")["views"]] == [True, False, True]
    assert json.loads((tmp_path / "out" / "transforms.json").read_text())["predicted_by"] == "VGGT, 1 of 3 stated"


def test_photos_with_cameras_are_the_same_shape_with_other_cameras(
    finished, engine, quick, cache, tmp_path, no_sampling
):
    (tmp_path / "cameras.json").write_text(
        json.dumps({"frame": "gltf", "frames": [turned(f) for f in frames_of(finished)]})
    )
    cameras = read_cameras(tmp_path / "cameras.json", ["a.png", "b.png", "c.png"])
    views = [View(f"view {number}", image, camera=camera)
             for number, (image, camera) in enumerate(zip(tiny_views(3), cameras, strict=True), start=1)]  # fmt: skip
    job = make_job(views, make_settings({}, quick), tmp_path / "out")
    result = run_job(job, engine, cache=cache)  # from splats: only the comparison looks at cameras
    assert {"structure", "latent", "decode", "mesh", "video"} <= set(result.cached)
    assert is_finished(job) and not is_finished(make_job(tiny_views(3), job.settings, tmp_path / "out"))
    found = run_job(replace(job, until="cameras"), engine, cache=cache)
    assert np.allclose(found.transforms["frames"][1]["transform_matrix"], cameras[1].pose, atol=1e-6)


def test_cameras_of_all_photos_stand_around_the_model_of_networks_that_do_not_say_where_it_is(
    finished, tmp_path, quick
):
    engine = load_engine(str(write_tiny_checkpoint(tmp_path / "tiny", camera_frame="first_view")), "cpu")
    cameras = [camera_of_frame(frame, "it") for frame in frames_of(finished)]
    views = [View(f"view {k}", image, camera=cameras[k]) for k, image in enumerate(tiny_views(3))]
    run_job(make_job(views, quick, tmp_path / "out"), engine)
    record = record_of(tmp_path / "out")
    assert record["camera_frame"] == "object" and record["quality"]["agreement"] is not None
    assert record["views"][0]["camera"]["found"] is None
    with pytest.raises(InputError, match="state the cameras of all photos"):
        run_job(make_job([views[0], replace(views[1], camera=None)], quick, tmp_path / "some"), engine)


def test_pictures_called_like_the_photos_decide_which_camera_is_whose(finished, tmp_path):
    frames = frames_of(finished)
    for frame, name in zip(frames, ("c", "a", "b"), strict=True):
        frame["file_path"] = f"photos/{name}.jpg"
    frames[0] = turned(frames[0])
    (tmp_path / "cameras.json").write_text(json.dumps({"frame": "gltf", "frames": frames}))
    a, b, c = read_cameras(tmp_path / "cameras.json", ["a.jpg", "b.jpg", "c.jpg"])
    assert a.pose != c.pose and np.allclose(c.pose, frames[0]["transform_matrix"])
    assert len(read_cameras(tmp_path / "cameras.json", ["b.jpg"])) == 1
    with pytest.raises(InputError, match="no camera of its own for 'd.jpg'"):
        read_cameras(tmp_path / "cameras.json", ["a.jpg", "d.jpg"])
    # Nothing else than the files' own frame: cameras of the photos, which are no squares.
    (tmp_path / "photos.json").write_text(json.dumps({"frames": [{**frame, "w": 2 * frame["w"]} for frame in frames]}))
    taken = read_cameras(tmp_path / "photos.json", ["a.png", "b.png"])
    assert all(isinstance(camera, PhotoCamera) and camera.aspect == 2 for camera in taken)
    own = read_cameras(finished / "transforms.json", ["001.png", "000.png", "002.png"])  # in their order
    assert np.allclose(own[0].pose, frames_of(finished)[0]["transform_matrix"])


IDENTITY = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 2.0], [0, 0, 0, 1.0]]
GOOD = {"w": 56, "h": 56, "fl_x": 60.0, "transform_matrix": IDENTITY}


def broken(row: int, column: int, value) -> dict:
    return {"transform_matrix": [[value if (i, j) == (row, column) else IDENTITY[i][j] for j in range(4)]
                                 for i in range(4)]}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (broken(0, 3, math.nan), "no number"),
        (broken(0, 0, math.inf), "no number"),
        (broken(0, 3, "1"), "no number"),
        (broken(0, 3, 10**400), "too large"),
        (broken(0, 0, 0.0), "no rigid motion"),  # singular
        (broken(0, 0, -1.0), "no rigid motion"),  # a reflection
        (broken(3, 3, 2.0), "no rigid motion"),
        (broken(3, 0, 1e-6), "no rigid motion"),
        (broken(2, 3, -2.0), "does not look at the object"),
        ({"transform_matrix": IDENTITY[:3]}, "4 rows of 4"),
        ({"transform_matrix": None}, "4 rows of 4"),
        ({"fl_x": math.nan}, "finite number as fl_x"),
        ({"fl_x": None}, "finite number as fl_x"),
        ({"fl_x": -60}, "field of view"),
        ({"fl_x": 1e9}, "field of view"),
        ({"fl_y": 0.1}, "field of view"),
        ({"cx": 9999}, "principal point"),
        ({"w": 640, "h": 480}, "views are square"),
        ({"w": 0, "h": 0}, "there cannot be"),
    ],
)
def test_a_broken_camera_is_refused_in_one_sentence(tmp_path, change, sentence):
    file = tmp_path / "cameras.json"
    frames = [{**GOOD, "file_path": "a.png"}, {**GOOD, "file_path": "b.png", **change}]
    file.write_text(json.dumps({"frame": "gltf", "frames": frames}))
    with pytest.raises(InputError) as refused:
        read_cameras(file, ["a.png", "b.png"])
    text = str(refused.value)
    assert text.startswith("The camera of 'b.png'") and sentence in text and text.endswith(".") and "\n" not in text
    body = {"views": ["a.png", "b.png"], "out": "out", "cameras": json.loads(file.read_text())}
    with pytest.raises(InputError, match=r"^The camera of 'b\.png'"):
        job_from_json(body)


def test_a_pose_may_be_rounded():
    assert camera_of_frame({**GOOD, **broken(3, 0, 4e-17)}, "It").pose[3] == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b" " * (5 * 2**20), "more than 4 MB"),
        ("[]", "lists no cameras"),
        ('{"frames": [1, 2]}', "lists no cameras"),
        (json.dumps({"frames": []}), "lists 0 cameras, but there are 2 photos"),
        (json.dumps({"frames": [{**GOOD, "file_path": "views/000.png"}] * 3}), "lists 3 cameras, but there are 2"),
        (json.dumps({"frames": [GOOD, GOOD]}), "no camera of its own for '0.png'"),
        (json.dumps({"frame": "first view, not registered to the asset", "frames": [GOOD, GOOD]}), "around the model"),
    ],
)
def test_a_file_of_no_cameras_ends_the_command_with_a_sentence_before_anything_is_loaded(tmp_path, content, sentence):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, view in enumerate(tiny_views(2)):
        view.save(photos / f"{number}.png")
    file = tmp_path / "cameras.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = ["reconstruct", photos, "-o", tmp_path / "out", "--cameras", file, "--checkpoint", "no/such"]
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert outcome.exit_code == 2 and sentence in outcome.stderr and len(outcome.stderr.strip().splitlines()) <= 2
    outcome = CliRunner().invoke(app, ["reconstruct", str(photos), "-o", "out", "--cameras", str(tmp_path / "absent")])
    assert outcome.exit_code == 2 and "'absent' cannot be read" in outcome.stderr


def test_a_record_with_a_broken_camera_or_too_few_cameras_is_refused(finished, tmp_path):
    with pytest.raises(InputError, match="3 views, but 2 cameras"):
        revise(finished, {}, tmp_path / "out", cameras=[None, None])
    record, folder = read_run(finished)
    for camera in (3, {"stated": None}, {"stated": {**GOOD, "fl_x": "wide"}}):
        record["views"][0]["camera"] = camera
        with pytest.raises(InputError, match=r"^The camera of 'views/000\.png'"):
            job_of_run(record, folder, tmp_path / "out")
