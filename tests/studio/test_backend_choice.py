"""Which backends do the work: named at the start, kept for all jobs, written into run.json."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tiny_checkpoint import tiny_views

from studio.backends import choose, chosen, parse
from studio.engine import load_engine
from studio.job import make_job
from studio.runner import run_job
from studio.service import Service
from trellis import backends
from trellis.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def other(monkeypatch):
    """A second way to do the norms on a CPU, used only by name."""
    plain = backends.NEEDS["norms"][-1]
    table = {**backends.NEEDS, "norms": (*backends.NEEDS["norms"], dataclasses.replace(plain, name="other"))}
    monkeypatch.setattr(backends, "NEEDS", table)
    monkeypatch.setattr(backends, "_chosen", {})


def test_what_is_named_is_used_and_the_rest_is_automatic(other):
    choose(CPU, {"norms": "other", "attention": "auto"})
    names = {need: candidate.name for need, candidate in chosen(CPU).items()}
    assert names["norms"] == "other" and names["attention"] == "sdpa" and set(names) == set(backends.NEEDS)


def test_a_run_names_its_backends_and_shares_no_stage_with_another_choice(other, checkpoint, quick, tmp_path):
    environments = set()
    for name in ("auto", "other"):
        engine = load_engine(str(checkpoint), "cpu", backends={"norms": name})
        environments.add(engine.environment)
    assert len(environments) == 2
    result = run_job(make_job(tiny_views(1), quick, tmp_path), engine)
    assert json.loads(result.run.read_text())["backends"]["norms"]["name"] == "other"


def test_a_worker_refuses_a_backend_that_does_not_work_here(checkpoint):
    with pytest.raises(InputError, match="attention 'flash-attn' does not exist on cpu; choose from auto, sdpa"):
        Service(str(checkpoint), ["cpu"], backends={"attention": "flash-attn"}).start()


def test_an_unknown_need_is_a_sentence():
    with pytest.raises(InputError, match="no need called 'magic'; the needs are attention, "):
        choose(CPU, {"magic": "auto"})


@pytest.mark.parametrize("text", ["", "attention", "=sdpa", "attention=", "="])
def test_what_is_no_choice_is_a_sentence(text):
    with pytest.raises(InputError, match="NEED=NAME"):
        parse([text])


def test_choices_are_read():
    assert parse(["attention=sdpa", " norms = torch ", "attention=sdpa"]) == {"attention": "sdpa", "norms": "torch"}
    with pytest.raises(InputError, match="Two backends were chosen for attention: sdpa and xformers"):
        parse(["attention=sdpa", "attention=xformers"])
