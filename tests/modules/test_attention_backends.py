"""Attention by cuDNN against the reference."""

from __future__ import annotations

import pytest
import torch
from kernel_devices import on_gpu
from torch.nn.attention import SDPBackend
from torch_versions import needs_torch

from trellis.modules import attention_cudnn, attention_sdpa


def draw(dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 64, generator=generator).to(device, dtype) for n in (96, 160, 160)]


@needs_torch("2.6", "older versions know no order of kernels")
def test_cudnn_is_preferred_but_not_required(monkeypatch):
    asked = []
    kernel = attention_cudnn.sdpa_kernel
    monkeypatch.setattr(
        attention_cudnn, "sdpa_kernel", lambda order, **how: (asked.append((order[0], how)), kernel(order, **how))[1]
    )
    for dtype in (torch.float32, torch.float16):
        operands = draw(dtype, "cpu")
        assert torch.equal(attention_cudnn.attend(*operands), attention_sdpa.attend(*operands))
    assert asked == [(SDPBackend.CUDNN_ATTENTION, {"set_priority": True})]


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])  # cuDNN takes no float32
@torch.no_grad()
def test_cudnn_agrees_with_exact_attention(dtype):
    attention_cudnn.self_test("cuda")
    operands = draw(dtype, "cuda")
    exact = attention_sdpa.attend(*(t.double().cpu() for t in operands))
    tolerance = 2e-3 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(attention_cudnn.attend(*operands).double().cpu(), exact, atol=tolerance, rtol=tolerance)
