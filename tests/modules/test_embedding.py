"""Positional and time embeddings against the recorded tables."""

import pytest
import torch
from golden_io import assert_close, load_golden

from trellis.modules.embedding import AbsolutePositionEmbedder, TimestepEmbedder


@pytest.mark.parametrize("channels", [1024, 768, 48])
def test_absolute_position_matches_the_recorded_table(channels):
    golden = load_golden("embeddings")
    actual = AbsolutePositionEmbedder(channels)(golden.inputs["coords"])
    assert_close(actual, golden.outputs[f"ape_{channels}"])


def test_timestep_sinusoids_match_the_recorded_table():
    golden = load_golden("embeddings")
    assert_close(TimestepEmbedder.timestep_embedding(golden.inputs["t"], 256), golden.outputs["t_freq"])


def test_position_embedder_keeps_nothing_in_the_state_dict():
    assert not AbsolutePositionEmbedder(48).state_dict()


def test_position_embedder_rejects_a_batch_column():
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        AbsolutePositionEmbedder(48)(torch.zeros(5, 4))


def test_position_embedder_rejects_too_few_channels():
    with pytest.raises(ValueError, match="at least 6"):
        AbsolutePositionEmbedder(4)
