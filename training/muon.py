"""Muon for the matrices of transformer blocks: momentum whose singular values are all made about one.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the step is scaled as in Liu et al. 2025 (arXiv:2502.16982),
so that a rate that suits Adam suits it. torch.optim.Muon takes one matrix at a time and cannot be recorded in a CUDA
graph; here all matrices of one shape are one batched product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic that takes singular values in (0, 1] to about 0.7 ... 1.2


def orthogonalised(matrices: Tensor) -> Tensor:
    """Roughly the nearest semi-orthogonal matrices of a batch [n, a, b], by Newton-Schulz iterations in bfloat16."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """Optimiser of weights [a, b] with Nesterov momentum, each step an orthogonal matrix.

    Args:
        parameters: two-dimensional ones.
        rate: learning rate, a tensor that may change between steps.
        weight_decay: share of a weight that goes with each step at rate 1.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: Tensor, weight_decay: float = 0.01):
        self.rate, self.weight_decay = rate, weight_decay
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.shape].append(parameter)
        self.groups = list(groups.values())
        self.stacks = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]

    def momenta(self) -> dict[nn.Parameter, Tensor]:
        """The momentum of each parameter, which may be written to."""
        return {
            parameter: momentum
            for group, stack in zip(self.groups, self.stacks, strict=True)
            for parameter, momentum in zip(group, stack, strict=True)
        }

    @torch.no_grad()
    def step(self, finite: Tensor) -> None:
        """One step along the gradients, or none, and no memory of them, where `finite` (a boolean) is False. All
        weights of one shape have gradients, or none, which leaves them as they are."""
        counts = finite.to(self.rate.dtype)
        rate = self.rate * counts
        for group, momentum in zip(self.groups, self.stacks, strict=True):
            if all(p.grad is None for p in group):
                continue
            gradients = torch.where(finite, torch.stack([p.grad for p in group]), 0.0)
            momentum.lerp_(gradients, (1 - MOMENTUM) * counts)
            change = orthogonalised(gradients.lerp(momentum, MOMENTUM))
            scale = 0.2 * max(group[0].shape) ** 0.5 * rate
            torch._foreach_mul_(group, 1 - rate * self.weight_decay)
            torch._foreach_sub_(group, list((scale * change).unbind()))
