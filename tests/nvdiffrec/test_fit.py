"""The gradient of the whole loss equals finite differences, for every parameter that a refinement may change."""

from __future__ import annotations

import pytest
import torch
from nvdiffrec_shapes import ball_views, bumpy_ball, patterned_material, sky

from nvdiffrec.asset import Asset
from nvdiffrec.fit import Fit, FitOptions

# How far to go along a direction of unit size per entry: far enough for the loss to change in single precision.
REACH = {"vertices": 0.02, "color": 0.02, "orm": 0.05, "normal": 0.1, "light": 0.05, "twists": 0.02, "log_focals": 0.02,
         "exposures": 0.05}  # fmt: skip


@pytest.mark.parametrize("name", REACH)
def test_gradient(name):
    views = ball_views(3, 48)
    start = Asset(bumpy_ball(2, bumps=0.03), patterned_material(frequency=9.0), 0.8 * sky())
    fit = Fit(start, views.cameras, FitOptions(cameras=True, exposure=True, normal_map=True))
    value = fit.parameters[name].requires_grad_()
    generator = torch.Generator().manual_seed(2)
    # The same sign everywhere in textures, or the change of thousands of texels would average out.
    direction = torch.randn(value.shape, generator=generator)
    direction = direction.abs() if name in ("color", "orm", "normal", "light") else direction
    if name == "vertices":
        direction = torch.sin(9 * value.detach() + torch.tensor([0.0, 1.0, 2.0]))
    at = value.detach().clone()
    # The loss has kinks (an absolute difference per pixel); the mean of the derivative along the way has none.
    steps = torch.linspace(-1, 1, 41)
    losses, derivatives = [], []
    for step in steps:
        with torch.no_grad():
            value.copy_(at + step * REACH[name] * direction)
        loss = fit.loss(views, 1)
        losses.append(loss.detach().double())
        derivatives.append((torch.autograd.grad(loss, value)[0] * direction).sum().double())
    analytic = torch.trapezoid(torch.stack(derivatives), steps.double()) * REACH[name]
    numeric = losses[-1] - losses[0]
    ways = (torch.stack(losses).diff()).abs().sum()
    assert float(ways) > 1e-4
    assert float(analytic) == pytest.approx(float(numeric), abs=0.03 * float(ways))
