"""The optimiser of the blocks' matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16)])
def test_singular_values_come_out_near_one(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, generator=generator)
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.4 and values.max() < 1.3
    # And the directions stay: the product with the matrix itself is its nuclear norm, roughly.
    aligned = (orthogonalised(matrices) * matrices).sum((1, 2)) / torch.linalg.svdvals(matrices).sum(1)
    assert (aligned - 0.9).abs().max() < 0.2


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this version of torch has no Muon")
def test_torchs_optimiser_takes_the_same_steps():
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(*shape, generator=generator) for shape in ((8, 12), (12, 8), (8, 12))]
    gradients = [[torch.randn(w.shape, generator=generator) for w in start] for _ in range(4)]
    ours, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    rate = torch.tensor(0.0)
    muon = Muon(ours, rate)
    reference = torch.optim.Muon(theirs, lr=0.05, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    rate.fill_(0.05)  # a recorded step must follow the schedule
    for step in gradients:
        for weights in (ours, theirs):
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.clone()
        muon.step(torch.tensor(True))
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=0)  # bfloat16 within


def test_infinite_gradients_change_nothing():
    weight = nn.Parameter(torch.ones(4, 6))
    muon = Muon([weight], torch.tensor(0.1))
    weight.grad = torch.arange(24.0).reshape(4, 6)
    muon.step(torch.tensor(True))
    before, momentum = weight.detach().clone(), muon.momenta()[weight].clone()
    assert not torch.equal(before, torch.ones(4, 6)) and momentum.abs().max() > 0
    weight.grad = torch.full((4, 6), torch.inf)
    muon.step(torch.tensor(False))
    assert torch.equal(weight, before) and torch.equal(muon.momenta()[weight], momentum)


def test_weights_without_gradients_stay_as_they_are():
    weight, other = nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(6, 4))
    muon = Muon([weight, other], torch.tensor(0.1))
    other.grad = torch.arange(24.0).reshape(6, 4)
    muon.step(torch.tensor(True))
    assert torch.equal(weight, torch.ones(4, 6)) and not muon.momenta()[weight].any()
    assert not torch.equal(other, torch.ones(6, 4))
