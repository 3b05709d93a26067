"""Predicted memory, and what is given up when there is too little."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_checkpoint import tiny_views

from studio import memory, stages
from studio.events import JobError, Note
from studio.job import make_job
from studio.memory import Free, Size, fit, predict
from studio.runner import run_job
from studio.settings import make_settings
from trellis.modules import launch_graph

LARGE = {"texture_size": 2048, "video_frames": 240, "video_size": 1024}


def room_for(pipeline, settings, size, chunked=False, stages=None) -> Free:
    """Just enough for these settings."""
    needs = predict(pipeline, settings, size, chunked)
    return Free(int(max(needs[stage] for stage in stages or needs) / 0.9) + 2)


def test_the_ladder_goes_from_pieces_over_the_turntable_to_the_texture(engine):
    pipeline, size = engine.pipeline, Size(32)
    asked = make_settings(LARGE)
    assert fit(pipeline, asked, size, Free(2**40)).notes == ()

    # What cameras need is lessened by working in pieces alone.
    free = room_for(pipeline, asked, size, chunked=True, stages=("cameras",))
    plan = fit(pipeline, asked, size, free, ("cameras",))
    assert plan.chunked and plan.settings == asked and len(plan.notes) == 1
    film = make_settings({"texture_size": 512}, asked)
    shorter = make_settings({"video_frames": 60, "video_size": 256}, film)
    plan = fit(pipeline, film, size, room_for(pipeline, shorter, size, chunked=True))
    assert plan.chunked and plan.settings == shorter and len(plan.notes) == 2
    for side in (1024, 512):
        lowered = make_settings({"texture_size": side}, shorter)
        plan = fit(pipeline, asked, size, room_for(pipeline, lowered, size, chunked=True))
        assert plan.settings == lowered and f"lowered to {side} pixels" in plan.notes[-1]
    with pytest.raises(JobError, match=r"too little memory for 32 views: the stage '.*' needs about .* are free"):
        fit(pipeline, asked, size, Free(2**20))


def test_a_refusal_says_how_many_views_would_fit(engine, quick):
    pipeline = engine.pipeline
    free = room_for(pipeline, quick, Size(20), chunked=True, stages=("cameras",))
    with pytest.raises(JobError, match="for 32 views: the stage 'Cameras' .* Up to 20 views would fit"):
        fit(pipeline, quick, Size(32), free, ("prepare", "cameras"))


def test_on_a_gpu_networks_leave_before_anything_else_is_given_up(engine, quick):
    rungs = [rung[1:3] for rung in memory._rungs(quick, on_gpu=True)]
    assert rungs[:3] == [(False, False), (True, False), (True, True)]
    assert [rung[1:3] for rung in memory._rungs(quick, on_gpu=False)][:2] == [(False, False), (False, True)]


def test_networks_come_back_to_their_device(engine):
    before = {name: next(model.parameters()).device for name, model in engine.pipeline.models.items()}
    memory.place(engine.pipeline, "structure")
    memory.place(engine.pipeline, None)
    assert {name: next(model.parameters()).device for name, model in engine.pipeline.models.items()} == before


def test_steps_that_were_recorded_give_their_memory_back_when_networks_leave(engine, monkeypatch):
    flow = engine.pipeline.models["sparse_structure_flow_model"]
    monkeypatch.setitem(launch_graph._kept, flow, object())
    memory.place(engine.pipeline, "latent")
    memory.place(engine.pipeline, None)
    assert flow not in launch_graph._kept


def test_more_of_anything_needs_more(engine, quick):
    pipeline = engine.pipeline
    few, many = (predict(pipeline, quick, Size(views)) for views in (1, 32))
    assert many["cameras"] > few["cameras"] and many["latent"] > few["latent"]
    assert predict(pipeline, make_settings(LARGE), Size(1))["bake"] > few["bake"]
    small, large = (predict(pipeline, quick, Size(1, voxels=voxels)) for voxels in (100, 10_000))
    assert all(large[stage] > small[stage] for stage in ("latent", "decode", "paint", "mesh", "bake"))
    assert predict(pipeline, quick, Size(1, pixels=80_000_000))["prepare"] > few["prepare"]
    assert predict(pipeline, quick, Size(32), chunked=True)["cameras"] < many["cameras"]


def test_too_little_is_refused_before_anything_runs(engine, quick, tmp_path):
    events: list[object] = []
    with pytest.raises(JobError, match=r"too little memory for 2 views.*0\.0 GB are free") as caught:
        run_job(make_job(tiny_views(2), quick, tmp_path / "out"), engine, emit=events.append,
                free_memory=Free(1000))  # fmt: skip
    assert caught.value.kind == "memory" and events == [] and not (tmp_path / "out").exists()


def test_a_job_in_pieces_gives_the_same_asset_up_to_rounding(engine, quick):
    views = [stages.PreparedView(f"{n}", view, "alpha") for n, view in enumerate(tiny_views(5))]
    pipeline = engine.pipeline

    def silent(*_):
        pass

    whole, pieces = (stages.cameras(views, pipeline, silent, chunked) for chunked in (False, True))
    torch.testing.assert_close(pieces.structure, whole.structure, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pieces.latent, whole.latent, atol=1e-4, rtol=1e-4)
    coords = stages.structure(whole, quick, pipeline, silent)
    assert torch.equal(stages.structure(whole, quick, pipeline, silent, True), coords)
    slats = [stages.latent(whole, coords, quick, pipeline, silent, chunked).feats for chunked in (False, True)]
    torch.testing.assert_close(*slats, atol=1e-3, rtol=1e-3)


def test_a_run_records_its_concessions_and_what_it_took(engine, quick, tmp_path):
    settings = make_settings({"texture_size": 768}, quick)
    lowered = make_settings({"texture_size": 512}, quick)
    events: list[object] = []
    free = room_for(engine.pipeline, lowered, Size(2, 56 * 56), chunked=True)
    result = run_job(make_job(tiny_views(2), settings, tmp_path), engine, emit=events.append, free_memory=free)
    notes = [event.message for event in events if isinstance(event, Note)]
    assert result.settings == lowered and notes == list(result.notes) and len(notes) == len(set(notes)) == 2
    record = json.loads(result.run.read_text())
    peaks = record["peak_memory_bytes"]
    assert peaks["chunked"] is True and peaks["offloaded"] is False and record["notes"] == notes
    assert record["settings"]["texture_size"] == 512 and record["asked"]["texture_size"] == 768
    assert set(peaks["predicted"]) == set(peaks["stages"]) == set(record["seconds"]) - {"total"}
    # After the shape was known, the count of its voxels took the place of the bound.
    bound = predict(engine.pipeline, lowered, Size(2), chunked=True)
    assert peaks["predicted"]["decode"] < bound["decode"] and result.counts["voxels"] < 6 * 8**2
