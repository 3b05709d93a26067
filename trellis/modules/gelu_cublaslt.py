"""The widening half of a feed-forward layer with the GELU inside the matrix product, by cuBLASLt.

Apart, the GELU reads and writes the widest tensor of a transformer once more. Half precision and inference only; the
rest goes to torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import gelu_torch


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `gelu_torch.linear_gelu`."""
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    half = x.dtype == weight.dtype == bias.dtype and x.dtype in (torch.float16, torch.bfloat16)
    if wants_gradient or not half or not x.is_cuda or x.numel() == 0:
        return gelu_torch.linear_gelu(x, weight, bias)
    # On a GPU this is the tanh approximation, applied before the product is rounded; on a CPU it is another function.
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True).view(*x.shape[:-1], len(weight))


def self_test(device: Any) -> None:
    """Compare with the reference: the operation is not part of torch's documented interface."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=generator).to(device, torch.float16)
                       for size in ((2, 32, 64), (128, 64), (128,)))  # fmt: skip
    with torch.no_grad():
        apart = linear_gelu(x, weight / 8, bias) - gelu_torch.linear_gelu(x, weight / 8, bias)
    if not apart.abs().max() < 5e-3:
        raise RuntimeError(f"cuBLASLt's GELU is {float(apart.abs().max()):.1e} off")
