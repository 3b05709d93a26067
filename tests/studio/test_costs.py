"""What comparisons cost, and which cell is the bargain."""

from __future__ import annotations

from typing import Any

import pytest

from studio.costs import best_bargain, full_seconds
from studio.settings import ReconstructSettings, make_settings

STAGES = ("prepare", "cameras", "structure", "latent", "decode", "paint", "mesh", "bake", "video", "report", "write")


def record(ran: dict[str, float], **settings: Any) -> dict[str, Any]:
    chosen = make_settings(settings).model_dump(mode="json")
    return {"settings": chosen, "seconds": {**ran, "total": 0.0}, "views": [{}] * 4}


def test_a_stage_from_the_cache_costs_what_it_took_when_it_ran():
    everything = dict.fromkeys(STAGES, 1.0)
    from_structure = {name: 2.0 for name in STAGES if name not in ("prepare", "cameras")}
    baked_again = {"bake": 5.0, "report": 1.0, "write": 1.0}
    records = [
        record(everything, structure_steps=5),
        record(from_structure, structure_steps=30),
        record(baked_again, structure_steps=30, texture_size=2048),
    ]
    assert full_seconds(records) == [11.0, 20.0, 1 + 1 + 2 + 2 + 2 + 2 + 2 + 5 + 2 + 1 + 1]


def test_what_nobody_has_measured_is_unknown():
    assert full_seconds([record({"bake": 1.0, "report": 1.0, "write": 1.0})]) == [None]


def test_what_was_in_the_cache_before_counts_with_what_it_usually_takes():
    def usual(settings: ReconstructSettings, views: int) -> dict[str, float]:
        return {stage: settings.structure.steps * 0.5 if stage == "structure" else 0.25 * views for stage in STAGES}

    baked = record({"bake": 5.0, "report": 1.0, "write": 1.0}, structure_steps=10)
    assert full_seconds([baked], usual) == [5.0 + 7 * 1.0 + 5.0 + 1.0 + 1.0]


@pytest.mark.parametrize(
    ("scores", "costs", "expected"),
    [
        ([20.0, 20.4, 20.5], [10.0, 20.0, 30.0], 0),
        ([20.0, 20.4, 20.6], [10.0, 20.0, 30.0], 1),
        ([20.0, 25.0], [1.0, 9.0], 1),
        ([20.0, 20.2], [5.0, 5.0], 1),
        ([None, 20.0, 20.1], [1.0, None, 9.0], 2),
        ([None, None], [1.0, 2.0], None),
        ([20.0], [None], None),
    ],
)  # fmt: skip
def test_the_bargain_is_the_cheapest_within_half_a_decibel_of_the_best(scores, costs, expected):
    assert best_bargain(scores, costs) == expected
