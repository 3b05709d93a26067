"""Least costs of paths from the border, where they are known."""

from __future__ import annotations

import numpy as np
import pytest

from trellis.pipelines.border_paths import barrier, largest_step


@pytest.fixture
def ramp_and_block():
    """A ramp of steps of 1 from 0 to 19, with a square of 60 in the middle that has a hole showing 10."""
    picture = np.tile(np.arange(20, dtype=np.float32), (20, 1))
    picture[6:14, 6:14] = 60
    picture[9:11, 9:11] = 10
    seeds = np.ones((20, 20), bool)
    seeds[1:-1, 1:-1] = False
    return picture[..., None], seeds


def test_the_barrier_is_the_range_of_values_on_the_best_path(ramp_and_block):
    picture, seeds = ramp_and_block
    cost = barrier(picture, seeds)
    assert (cost[seeds] == 0).all()
    assert cost[3, 10] == 0  # straight up, along equal values
    assert cost[7, 12] == 60 - 14  # from the highest value that touches the square
    assert cost[9, 9] == 60 - 10  # across the square, although the hole looks like the background


def test_the_largest_step_ignores_how_far_a_ramp_leads(ramp_and_block):
    picture, _ = ramp_and_block
    left = np.zeros((20, 20), bool)
    left[:, 0] = True
    step = largest_step(picture, left)
    assert step[2, 19] == 1
    assert step[7, 12] == 60 - 14
    assert barrier(picture, left)[2, 19] == 19


def test_channels_add_like_lengths():
    picture = np.zeros((5, 5, 2), np.float32)
    picture[2, 2] = (3, 4)
    seeds = np.zeros((5, 5), bool)
    seeds[0, 0] = True
    assert barrier(picture, seeds)[2, 2] == largest_step(picture, seeds)[2, 2] == 5
    assert np.isinf(barrier(picture, np.zeros((5, 5), bool))).all()
