"""One job after another over one cache: what runs again, and what does not."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial import cKDTree
from tiny_checkpoint import tiny_views

from studio.cache import StageCache
from studio.events import CamerasFound, Cancelled, JobError, Note, Progress
from studio.history import History
from studio.inputs import View
from studio.job import job_from_json, make_job
from studio.pages import fragments
from studio.pages.result_view import ResultView
from studio.presets import measured_times
from studio.replay import revise
from studio.results import list_results, read_result
from studio.runner import run_job
from studio.settings import make_settings
from trellis.errors import InputError
from trellis.renderers.camera_formats import from_transforms

SAMPLING = {"prepare", "cameras", "structure", "latent", "decode"}
SPLATS = SAMPLING | {"paint"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> StageCache:
    return StageCache(tmp_path_factory.mktemp("shared") / "stages")


@pytest.fixture(scope="module")
def first(engine, quick, cache, tmp_path_factory):
    """A finished job, and its events."""
    events: list[Progress | Note] = []
    job = make_job(tiny_views(2), quick, tmp_path_factory.mktemp("first"))
    return run_job(job, engine, cache=cache, emit=events.append), events


def again(engine, quick, cache, folder: Path, **changes):
    return run_job(make_job(tiny_views(2), make_settings(changes, quick), folder), engine, cache=cache)


def test_a_second_run_samples_and_bakes_nothing_and_gives_the_same_bytes(first, engine, quick, cache, tmp_path):
    result = again(engine, quick, cache, tmp_path)
    assert set(result.cached) == SPLATS | {"mesh", "bake", "video"}
    for name in ("mesh.glb", "gaussian.ply", "turntable.mp4", "transforms.json", "coverage.png"):
        assert (tmp_path / name).read_bytes() == (first[0].folder / name).read_bytes()


def test_another_texture_size_bakes_again_and_nothing_else(first, engine, quick, cache, tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a sampler ran")

    monkeypatch.setattr("trellis.pipelines.samplers.FlowEulerGuidanceIntervalSampler.iterate", forbidden)
    result = again(engine, quick, cache, tmp_path, texture_size=768)
    assert set(result.cached) == SPLATS | {"mesh", "video"}
    assert set(json.loads(result.run.read_text())["seconds"]) == {"bake", "report", "write", "total"}


def test_photographs_may_be_laid_over_the_splats_colours(first, engine, quick, cache, tmp_path):
    splats = again(engine, quick, cache, tmp_path, texture_source="splats")
    assert set(splats.cached) == SAMPLING | {"mesh"}
    photo, *renders = (
        np.concatenate([np.asarray(Image.open(folder / f"00{view}.png")) / 255 for view in range(2)])
        for folder in (splats.folder / "views", splats.folder / "renders", first[0].folder / "renders")
    )
    both = (photo[..., 3] > 0.9) & (renders[0][..., 3] > 0.9)
    apart = [np.abs(photo - render)[..., :3].mean(axis=-1) for render in renders]
    painted = both & (np.abs(renders[0] - renders[1]).max(axis=-1) > 0.02)
    ply = [trimesh.load(run.folder / "gaussian.ply") for run in (splats, first[0])]
    from_surface = cKDTree(trimesh.load(first[0].mesh, force="mesh").sample(20_000)).query
    far = [np.quantile(from_surface(cloud.vertices)[0], 0.9) for cloud in ply]
    assert 0 < len(ply[1].vertices) <= len(ply[0].vertices) and far[1] < 0.5 * far[0], "the splats are laid on it too"
    assert painted.sum() > 0.2 * both.sum()  # few of the random surface's triangles face the camera
    assert apart[1][painted].mean() < 0.5 * apart[0][painted].mean()
    assert apart[1][both].mean() < apart[0][both].mean()


def test_a_mesh_for_printing_is_closed_and_nothing_is_sampled_for_it(first, engine, quick, cache, tmp_path):
    result = again(engine, quick, cache, tmp_path, watertight=True)
    assert set(result.cached) == SPLATS | {"video"}
    assert json.loads(result.run.read_text())["quality"]["mesh"]["watertight"]


def test_a_real_length_is_that_of_the_exports(first, engine, quick, cache, tmp_path):
    job = make_job(tiny_views(2), make_settings({"longest_side": 0.12}, quick), tmp_path, formats=["stl"])
    result = run_job(job, engine, cache=cache)
    assert set(result.cached) == SPLATS | {"mesh", "bake", "video"}
    assert result.mesh.read_bytes() == first[0].mesh.read_bytes()
    for name in ("asset.glb", "asset.stl"):
        assert trimesh.load(tmp_path / "exports" / name, force="mesh").extents.max() == pytest.approx(0.12, rel=1e-5)


def test_another_seed_of_the_detail_keeps_cameras_and_shape(first, engine, quick, cache, tmp_path):
    result = again(engine, quick, cache, tmp_path, latent_seed=99)
    assert set(result.cached) == {"prepare", "cameras", "structure"}
    assert result.counts["voxels"] == first[0].counts["voxels"]
    assert result.gaussian.read_bytes() != first[0].gaussian.read_bytes()


def test_a_damaged_entry_in_the_middle_is_computed_again(first, engine, quick, cache, tmp_path):
    for file in cache.folder.glob("*.stage"):
        file.write_bytes(file.read_bytes()[:-1])
    result = again(engine, quick, cache, tmp_path)
    assert result.mesh.read_bytes() == first[0].mesh.read_bytes()


def test_other_photos_share_nothing(first, engine, quick, cache, tmp_path):
    result = run_job(make_job(tiny_views(3)[1:], quick, tmp_path), engine, cache=cache)
    assert result.cached == ()


def test_previews_are_small_pictures_and_come_from_the_cache_too(first, engine, quick, cache, tmp_path):
    previews = {event.stage: event.preview for event in first[1] if isinstance(event, Progress) and event.preview}
    assert set(previews) == {"prepare", "structure", "decode", "paint", "bake"}
    assert all(preview.startswith(b"\xff\xd8") and len(preview) < 50_000 for preview in previews.values())
    events: list[Progress] = []
    run_job(make_job(tiny_views(2), quick, tmp_path), engine, cache=cache, emit=events.append)
    assert {event.stage: event.preview for event in events if event.preview} == previews


def test_a_job_may_stop_at_the_cameras_and_go_on_with_fewer_views(engine, quick, tmp_path, monkeypatch):
    cache, views, out = StageCache(tmp_path / "cache"), tiny_views(3), tmp_path / "out"
    found = run_job(make_job(views, quick, out, until="cameras"), engine, cache=cache)
    assert isinstance(found, CamerasFound) and found.cached == () and not out.exists()
    assert [view.name for view in found.views] == ["view 1", "view 2", "view 3"]
    assert all(view.picture.startswith(b"\xff\xd8") and view.cut_out_by == "alpha" for view in found.views)
    assert found.views[0].notes == () and found.transforms["frame"] == "gltf"
    cameras, _ = from_transforms(found.transforms)
    assert len(cameras) == 3
    # Going on as it was repeats nothing, and writes the same cameras.
    whole = run_job(make_job(views, quick, out), engine, cache=cache)
    assert whole.cached[:2] == ("prepare", "cameras")
    assert json.loads(whole.transforms.read_text()) == found.transforms
    # Without one view, the others need not be cut out again.
    monkeypatch.setattr("studio.stages.cut_out", lambda image: pytest.fail("a view was cut out again"))
    kept = [View("view 1", views[0]), View("view 3", views[2])]
    fewer = run_job(make_job(kept, quick, out, until="cameras"), engine, cache=cache)
    assert [view.name for view in fewer.views] == ["view 1", "view 3"]


def test_a_finished_run_is_revised_in_place_without_sampling(engine, quick, cache, tmp_path, monkeypatch):
    """Its own prepared views lead to the same stages as the photographs that it was made from."""
    out, job = tmp_path / "out", make_job(tiny_views(2, transparent=False), quick, tmp_path / "out")
    before = run_job(job, engine, cache=cache)
    views = json.loads(before.run.read_text())["views"]
    monkeypatch.setattr("trellis.pipelines.samplers.FlowEulerGuidanceIntervalSampler.iterate",
                        lambda *_: pytest.fail("a sampler ran"))  # fmt: skip
    repeated = ({"longest_side": 0.2}, set()), ({"texture_size": 768}, {"bake"}), ({"simplify": 0.9}, {"mesh", "bake"})
    for changes, again in repeated:
        result = run_job(revise(out, changes), engine, cache=cache)
        record = json.loads(result.run.read_text())
        assert result.folder == out and set(record["seconds"]) - {"prepare"} == {*again, "report", "write", "total"}
        assert record["views"] == views and views[0]["cut_out_by"] == "grabcut"
    (listed,) = list_results(tmp_path)
    assert listed.result.settings == result.settings and listed.result.counts == result.counts
    assert listed.picture.is_file() and 0 <= listed.observed <= 1 and listed.checkpoint == Path(engine.checkpoint).name
    (out / "run.json").write_text('{"settings": {}, "views": [], "files": {}, "weights": {}}')
    assert list_results(tmp_path) == list_results(tmp_path / "absent") == []
    with pytest.raises(InputError, match="not a record of a run"):
        read_result(out)


def test_cancelling_stops_at_the_next_step_of_every_stage_and_keeps_what_was_finished(engine, quick, cache, tmp_path):
    names = ["prepare", "cameras", "structure", "latent", "decode", "paint", "mesh", "bake", "video", "report"]
    fresh = StageCache(tmp_path / "cache")
    for number, name in enumerate(names):
        seen: list[Progress] = []
        job = make_job(tiny_views(2), quick, tmp_path / "out")
        with pytest.raises(Cancelled):
            run_job(job, engine, cache=fresh, emit=seen.append,
                    cancelled=lambda name=name, seen=seen: any(event.stage == name for event in seen))  # fmt: skip
        assert [event.stage for event in seen].count(name) == 1  # not one step more
        assert [event.stage for event in seen if event.cached] == names[: max(number - 1, 0)]  # what the last run ended
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("network", ["sparse_structure_flow_model", "slat_flow_model", "slat_decoder_gs"])
def test_cancelling_stops_between_two_blocks_of_a_network(engine, quick, cache, tmp_path, network):
    blocks, ran = engine.pipeline.models[network].blocks, []
    hooks = [block.register_forward_hook(lambda *_, number=number: ran.append(number))
             for number, block in enumerate(blocks)]  # fmt: skip
    job = make_job(tiny_views(2), quick, tmp_path / "out", use_cache=False)
    try:
        with pytest.raises(Cancelled):
            run_job(job, engine, cancelled=lambda: bool(ran))
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == [0] and len(blocks) > 1
    assert not any(block._forward_pre_hooks for block in blocks)  # nothing is left on the networks


def test_the_files_are_listed_with_their_hashes(first):
    record = json.loads(first[0].run.read_text())
    assert set(record["files"]) == {
        path.relative_to(first[0].folder).as_posix()
        for path in first[0].folder.rglob("*")
        if path.is_file() and path.name != "run.json"
    }
    digest = hashlib.sha256(first[0].mesh.read_bytes()).hexdigest()
    assert record["files"]["mesh.glb"] == digest


def test_the_report_says_how_well_it_agrees_and_what_was_seen(first):
    quality = json.loads(first[0].run.read_text())["quality"]
    assert len(quality["agreement"]["views"]) == 2
    for what in ("mesh", "splats"):
        scores = quality["agreement"]["mean"][what]
        assert scores["psnr"] > 0 and -1 <= scores["ssim"] <= 1 and 0 <= scores["iou"] <= 1
    assert abs(sum(quality["coverage"]["shares"].values()) - 1) < 1e-3
    assert len(quality["coverage"]["observed_by_view"]) == 2
    mesh = quality["mesh"]
    assert mesh["faces"] == first[0].counts["triangles"] and 0 < mesh["hausdorff"] < 1
    assert mesh["file_bytes"] == first[0].mesh.stat().st_size and not mesh["watertight"]
    shown = ResultView("key", first[0].folder).checks()
    for name in ("faces", "vertices", "components", "boundary_edges", "non_manifold_edges", "flipped_faces", "charts"):
        assert f"<dd>{mesh[name]:,}</dd>" in shown
    for value in (f"{1000 * mesh['hausdorff']:.1f} &permil;", f"{mesh['texels_per_unit']:,.0f}", "no", "512",
                  f"{mesh['uv_coverage']:.0%}", fragments.size(mesh["file_bytes"])):  # fmt: skip
        assert f"<dd>{value}</dd>" in shown


def test_no_frames_make_no_videos(first, engine, quick, cache, tmp_path):
    history = History(tmp_path / "history.jsonl")
    unfilmed = make_settings({"video_frames": 0}, quick)
    result = run_job(make_job(tiny_views(2), unfilmed, tmp_path / "out"), engine, cache=cache, history=history)
    assert result.turntable is None and not list(result.folder.rglob("*.mp4")) and result.notes == ()
    assert result.mesh.read_bytes() == first[0].mesh.read_bytes() and (result.folder / "coverage.png").is_file()
    page = ResultView("key", result.folder)
    assert "No turntable" in page.turntable() and ".mp4" not in page.checks() + page.files()


def test_without_ffmpeg_everything_but_the_videos_is_there(first, engine, quick, cache, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    result = again(engine, quick, cache, tmp_path, video_frames=4)
    assert result.turntable is None and not list(tmp_path.rglob("*.mp4"))
    assert "ffmpeg" in result.notes[0] and json.loads(result.run.read_text())["notes"] == list(result.notes)
    assert result.mesh.read_bytes() == first[0].mesh.read_bytes()
    monkeypatch.undo()
    assert again(engine, quick, cache, tmp_path, video_frames=4).turntable is not None  # its absence is not kept


def test_further_formats_are_written_too(engine, quick, cache, tmp_path):
    job = make_job(tiny_views(2), quick, tmp_path, formats=["stl", "spz"])
    result = run_job(job, engine, cache=cache)
    assert {file.name for file in (result.folder / "exports").iterdir()} == {"asset.stl", "asset.spz"}
    assert "exports/asset.stl" in json.loads(result.run.read_text())["files"]


TORCH_SAYS = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(TORCH_SAYS)])
def test_running_out_of_memory_is_explained(engine, quick, tmp_path, monkeypatch, error):
    def greedy(*_):
        raise error

    monkeypatch.setattr("studio.stages.latent", greedy)
    with pytest.raises(JobError, match="not enough memory for the stage 'Detail'") as caught:
        run_job(make_job(tiny_views(1), quick, tmp_path / "out"), engine)
    assert caught.value.kind == "memory" and "greedy" in caught.value.details
    assert not (tmp_path / "out").exists()


def test_the_time_left_comes_from_measured_runs(engine, quick, tmp_path):
    file = tmp_path / "history.jsonl"
    job = make_job(tiny_views(2), quick, tmp_path / "out")
    assert History(file).expected(engine.pace, quick, 2) is None
    result = run_job(job, engine, history=History(file))
    file.write_text(file.read_text() + "torn {\n[]\n")
    times = measured_times(History(file), engine.pace, engine.defaults, 2)
    assert 0 < times["draft"] < times["standard"] < times["best"]
    events: list[Progress] = []
    run_job(job, engine, history=History(file), emit=events.append)
    left = [event.remaining for event in events]
    assert None not in left and left[-1] == 0
    assert 0.3 * result.seconds < left[0] < 3 * result.seconds
    assert all(later <= earlier + 1e-9 for earlier, later in zip(left, left[1:], strict=False))


JSON_VALUES = [None, True, 3, "x", [], {}, [1], {"a": 1}, "\0", 1e308, ["\0"], {"steps": "many"}, [[]], -1]


@pytest.mark.parametrize("part", ["job", "views", "out", "settings", "formats", "seed", "structure", "surplus"])
@pytest.mark.parametrize("value", JSON_VALUES, ids=repr)
def test_any_json_is_a_job_or_a_sentence(part, value):
    body = {"views": ["a.png"], "out": "out", "settings": {}}
    if part == "job":
        body = value
    elif part in ("seed", "structure"):
        body["settings"] = {part: value}
    else:
        body[part] = value
    try:
        job = job_from_json(body)
    except InputError as error:
        assert len(str(error)) > 10
    else:
        assert job.views and 0 <= job.settings.seed
