"""Eight-bit weights: what comes back, what is left alone, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from trellis.errors import InputError
from trellis.pipelines.checkpoints import read_safetensors
from trellis.pipelines.quantisation import SCALE_SUFFIX, dequantise, quantise


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.logspace(-4, 1, 64)[:, None]  # rows of very different size
    return {
        "linear.weight": torch.randn(64, 96, generator=generator) * rows,
        "conv.weight": torch.randn(32, 8, 3, 3, 3, generator=generator),
        "norm.weight": torch.randn(5000, generator=generator),
        "small.weight": torch.randn(4, 4, generator=generator),
        "index": torch.arange(10_000).reshape(100, 100),
    }


def test_values_move_by_at_most_half_a_level_of_their_row(tmp_path):
    original = weights()
    save_file(quantise(original), tmp_path / "w.safetensors")
    restored = read_safetensors(tmp_path / "w.safetensors")
    assert restored.keys() == original.keys()
    for key in ("linear.weight", "conv.weight"):
        largest = original[key].flatten(1).abs().amax(1)
        error = (restored[key] - original[key]).flatten(1).abs().amax(1)
        assert (error <= largest / 254 * (1 + 1e-5)).all()
    for key in ("norm.weight", "small.weight", "index"):
        assert torch.equal(restored[key], original[key])


def test_matrices_take_a_quarter_of_the_space():
    stored = quantise(weights())
    assert stored["conv.weight"].dtype == torch.int8
    assert stored["conv.weight" + SCALE_SUFFIX].shape == (32,)


def test_rows_of_zeros_stay_zero():
    state = {"w": torch.zeros(64, 64)}
    assert torch.equal(dequantise(quantise(state))["w"], state["w"])


@pytest.mark.parametrize(
    "state",
    [
        {"w:scale": torch.ones(3)},
        {"w": torch.zeros(3, 2), "w:scale": torch.ones(3)},
        {"w": torch.zeros(3, 2, dtype=torch.int8), "w:scale": torch.ones(2)},
    ],
)
def test_a_scale_that_belongs_to_nothing_is_refused_with_a_sentence(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="w.safetensors is damaged"):
        read_safetensors(tmp_path / "w.safetensors")
