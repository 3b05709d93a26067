"""Warming up runs every network and decides what does the work."""

from __future__ import annotations

import torch

from trellis import backends
from trellis.pipelines import TrellisVGGTTo3DPipeline
from trellis.pipelines.warm_up import warm_up


def test_every_network_runs_and_a_choice_made_before_stays(tiny_folder, monkeypatch):
    monkeypatch.setattr(backends, "_chosen", {})
    pipeline = TrellisVGGTTo3DPipeline.from_pretrained(tiny_folder)
    ran = set()
    networks = {**pipeline.models, "vggt": pipeline.vggt.aggregator}
    networks |= {"image_cond_model": pipeline.image_cond_model.norm}
    for name, network in networks.items():
        network.register_forward_hook(lambda *_, name=name: ran.add(name))
    assert set(warm_up(pipeline)) == set(backends.NEEDS)
    assert ran == set(networks)

    chosen = []
    monkeypatch.setattr(backends, "choose", lambda *args, **names: chosen.append(args))
    warm_up(pipeline)
    assert chosen == []


def test_it_leaves_no_trace_in_random_numbers(tiny_folder):
    pipeline = TrellisVGGTTo3DPipeline.from_pretrained(tiny_folder)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    warm_up(pipeline)
    assert torch.equal(torch.rand(3), expected)
