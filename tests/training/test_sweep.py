"""Candidates for the networks' sizes, side by side."""

from __future__ import annotations

import pytest

from training import sweep


@pytest.mark.parametrize("script", sweep.CANDIDATES)
def test_candidates_have_about_as_many_weights_as_what_is_shipped(script):
    weights = {}
    for title, changes in sweep.CANDIDATES[script].items():
        networks, _ = sweep.stage(script, changes)
        weights[title] = sum(p.numel() for network in networks for p in network.parameters())
    shipped, *others = weights.values()
    assert all(0.9 < other / shipped < 1.1 for other in others), weights
