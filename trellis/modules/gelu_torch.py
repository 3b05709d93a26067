"""The widening half of a feed-forward layer, as torch writes it: the reference."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU (tanh approximation) of a linear layer: ``x [..., C]``, ``weight [H, C]``, ``bias [H] -> [..., H]``."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")
