"""A Space on ZeroGPU, against a stand-in for the package `spaces` that forks and pickles as that does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from studio.events import WRITTEN
from studio.stages import STAGES
from studio.zero_gpu import on_zero_gpu
from trellis.errors import InputError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def told(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the jobs of zero_gpu/jobs.py told."""
    folder = tmp_path_factory.mktemp("zero")
    environment = {
        **os.environ,
        "SPACES_ZERO_GPU": "true",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE / "zero_gpu", HERE.parent, HERE.parent.parent))),
        "RECONSTUDIO_CACHE": str(folder / "stages"),
        "RECONSTUDIO_HISTORY": str(folder / "history.jsonl"),
    }
    # Not by its file, which the process that warms up would import again.
    command = [sys.executable, "-c", "import sys, jobs; jobs.main(*sys.argv[1:])", checkpoint, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_job_runs_in_a_forked_process_and_tells_what_happens_as_it_happens(told):
    whole = told["whole"]
    assert whole["ended"] and whole["stages"] == [stage.name for stage in STAGES]
    assert set(whole["files"]) <= set(WRITTEN) and {"mesh.glb", "run.json"} <= set(whole["files"])
    assert len(whole["pids"]) == 1 and told["own pid"] not in whole["pids"]
    assert whole["first progress"] < whole["spread"] / 2  # not all at the end


def test_a_job_is_cancelled_within_a_step_and_its_process_takes_the_next(told):
    assert told["stopped"]["seconds"] < 10 and not told["stopped"]["left"]
    assert told["next"] == {"views": 2, "cached": ["prepare", "cameras"], "same process": True}


def test_a_process_that_is_killed_is_a_sentence_and_what_was_finished_is_kept(told):
    assert told["killed"]["type"] == "JobError" and told["killed"]["left"] == []
    assert told["killed"]["sentence"].startswith("ZeroGPU ended the process in the middle of the job, ")
    assert "structure" in told["after"]["cached"] and "latent" not in told["after"]["cached"] and told["after"]["run"]


def test_bad_photos_and_refinements_are_as_everywhere(told):
    assert len(told["refused"]["sentences"]) == 2
    assert told["refined"]


def test_a_used_up_quota_is_a_sentence_and_the_next_job_runs(told):
    assert told["quota"]["sentence"] == (
        "ZeroGPU lends no GPU for this job: You have exceeded your quota (100s requested vs. 30s left). "
        "Try again in 1:00:00."
    )
    assert told["paid again"]


def test_a_call_asks_for_what_the_job_will_take_and_charges_whoever_handed_it_in(told):
    (first, by), *others, (_, last) = told["calls"]
    assert (first, by) == (100, "ada")  # nothing has run here before: the most there is
    assert {by for _, by in others} == {"ben"}
    assert told["group"] and last == "cyd"
    known = [seconds for seconds, _ in others]
    assert 15 < min(known) < 100 and max(known) <= 100


def test_a_space_on_zero_gpu_is_known_by_its_variable_and_needs_the_package(monkeypatch):
    assert not on_zero_gpu()
    monkeypatch.setenv("SPACES_ZERO_GPU", "false")
    assert not on_zero_gpu()
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr("studio.zero_gpu.find_spec", lambda name: None)
    with pytest.raises(InputError, match="the package spaces, .* is missing"):
        on_zero_gpu()
    monkeypatch.setattr("studio.zero_gpu.find_spec", lambda name: object())
    assert on_zero_gpu()
