"""The GELU inside the matrix product against the reference."""

from __future__ import annotations

import pytest
import torch
from kernel_devices import on_gpu

from trellis.modules import gelu_cublaslt, gelu_torch


def draw(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (2, 40, 64), (256, 64), (256,)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in sizes)
    return [t.to(device, dtype) for t in (3 * x, weight / 8, bias)]


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_rounded_once(dtype):
    operands = draw("cuda", dtype)
    exact = gelu_torch.linear_gelu(*(t.double() for t in operands))
    apart = (gelu_cublaslt.linear_gelu(*operands).double() - exact).abs()
    reference = (gelu_torch.linear_gelu(*operands).double() - exact).abs()
    assert apart.max() < 2 * reference.max() and apart.mean() < 1.2 * reference.mean()
    gelu_cublaslt.self_test("cuda")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, on_gpu])])
def test_gradients_are_those_of_the_reference(device):
    operands = [t.requires_grad_() for t in draw(device, torch.float32)]
    outs = [module.linear_gelu(*operands) for module in (gelu_cublaslt, gelu_torch)]
    assert torch.equal(*outs)
    for actual, expected in zip(*(torch.autograd.grad(out.square().sum(), operands) for out in outs), strict=True):
        torch.testing.assert_close(actual, expected)
