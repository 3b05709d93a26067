"""The total variation that keeps noise out of fitted textures."""

from __future__ import annotations

import pytest
import torch

from nvdiffrec.losses import total_variation


def test_a_change_by_the_same_everywhere_costs_nothing():
    assert float(total_variation(torch.full((3, 16, 16), 0.4))) == pytest.approx(0, abs=1e-6)


def test_a_step_costs_its_height_and_a_ramp_no_less():
    step, ramp = torch.zeros(1, 8, 64), torch.linspace(0, 0.5, 64).expand(1, 8, 64)
    step[..., 32:] = 0.5
    # 63 pairs along each row, one of which differs; the soft corner makes small differences cheaper.
    assert float(total_variation(step)) == pytest.approx(0.5 / 63, rel=0.02)
    assert 0.5 / 63 * 0.6 < float(total_variation(ramp)) < 0.5 / 63


def test_noise_costs_much_more_than_a_pattern_of_the_same_size():
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(3, 64, 64, generator=generator)
    pattern = torch.zeros(3, 64, 64)
    pattern[:, 16:48, 16:48] = 0.1
    pattern *= noise.std() / pattern.std()
    assert float(total_variation(noise)) > 10 * float(total_variation(pattern))


def test_descending_along_it_removes_noise_and_keeps_the_step():
    generator = torch.Generator().manual_seed(1)
    clean = torch.zeros(1, 32, 32)
    clean[..., 16:] = 0.5
    noisy = clean + 0.02 * torch.randn(clean.shape, generator=generator)
    change = noisy.clone().requires_grad_()
    optimiser = torch.optim.Adam([change], lr=2e-3)
    for _ in range(60):
        optimiser.zero_grad()
        (0.03 * total_variation(change) + (change - noisy).square().mean()).backward()
        optimiser.step()
    denoised = change.detach()
    assert (denoised - clean).square().mean() < 0.3 * (noisy - clean).square().mean()
    assert (denoised[..., 17] - denoised[..., 14]).mean() > 0.4
