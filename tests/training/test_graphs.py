"""Recorded steps and batches drawn ahead."""

from __future__ import annotations

import pytest
import torch
from kernel_devices import on_gpu
from torch import nn

from training.graphs import GraphedStep, drawn_ahead


def test_batches_come_in_order_and_without_gradients():
    weight = nn.Parameter(torch.ones(1))
    batches = drawn_ahead(lambda step: {"x": step * weight}, 3, torch.device("cpu"))
    first, second = next(batches), next(batches)
    assert (float(first["x"]), float(second["x"])) == (3.0, 4.0)
    assert not first["x"].requires_grad


@pytest.mark.gpu
@on_gpu
def test_recorded_steps_train_as_plain_ones_do():
    def trained(record: bool) -> list[float]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 32), nn.GELU(), nn.Linear(32, 1)).cuda()
        rate = torch.tensor(0.01, device="cuda")
        optimiser = torch.optim.AdamW(network.parameters(), lr=rate, fused=True, capturable=True)

        def step(batch):
            optimiser.zero_grad(set_to_none=True)
            loss = (network(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimiser.step()
            return loss.detach()

        def draw(index: int):
            generator = torch.Generator(device="cuda").manual_seed(index)
            return {"x": torch.randn(16 + 16 * (index % 2), 4, generator=generator, device="cuda")}

        take = GraphedStep(step) if record else step
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            batches, losses = drawn_ahead(draw, 0, torch.device("cuda")), []
            for index in range(40):
                rate.fill_(0.01 / (1 + index))
                losses.append(take(next(batches)))
        torch.cuda.synchronize()
        return [float(loss) for loss in losses]

    plain, recorded = trained(False), trained(True)
    assert plain[-1] < plain[0]
    assert recorded == pytest.approx(plain, rel=1e-3, abs=1e-5)
