"""Layer norm of many short rows as Triton kernels with gradients: torch's own spends a thread block on each row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCKS = 16  # blocks of rows that share one partial sum of the gradients of weight and bias


@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(
    x, weight, bias, out, rows, eps, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, WIDTH)
    is_channel = c < CHANNELS
    inside = (row < rows)[:, None] & is_channel[None, :]
    at = row[:, None] * CHANNELS + c[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, value - (tl.sum(value, axis=1) / CHANNELS)[:, None], 0.0)
    spread = tl.rsqrt(tl.sum(centred * centred, axis=1) / CHANNELS + eps)[:, None]
    scale = tl.load(weight + c, mask=is_channel, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=is_channel, other=0.0).to(tl.float32)
    y = centred * spread * scale[None, :] + shift[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _gradient_kernel(
    x, weight, grad, grad_x, grad_weight, grad_bias, rows, eps,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, WIDTH)
    is_channel = c < CHANNELS
    scale = tl.load(weight + c, mask=is_channel, other=0.0).to(tl.float32)
    total_weight = tl.zeros((WIDTH,), tl.float32)
    total_bias = tl.zeros((WIDTH,), tl.float32)
    for block in range(BLOCKS):
        row = (tl.program_id(0).to(tl.int64) * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        inside = (row < rows)[:, None] & is_channel[None, :]
        at = row[:, None] * CHANNELS + c[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        upstream = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(inside, value - (tl.sum(value, axis=1) / CHANNELS)[:, None], 0.0)
        spread = tl.rsqrt(tl.sum(centred * centred, axis=1) / CHANNELS + eps)[:, None]
        unit = centred * spread
        total_weight += tl.sum(upstream * unit, axis=0)
        total_bias += tl.sum(upstream, axis=0)
        g = upstream * scale[None, :]
        along = (tl.sum(g * unit, axis=1) / CHANNELS)[:, None]
        g = spread * (g - (tl.sum(g, axis=1) / CHANNELS)[:, None] - unit * along)
        tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(grad_weight + tl.program_id(0) * WIDTH + c, total_weight)
    tl.store(grad_bias + tl.program_id(0) * WIDTH + c, total_bias)


class _RowNorm(torch.autograd.Function):
    """x [rows, C], contiguous."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        out = torch.empty_like(x)
        sizes = _sizes(x)
        _norm_kernel[(triton.cdiv(len(x), sizes["BLOCK"]),)](x, weight, bias, out, len(x), eps, **sizes, num_warps=4)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        sizes = _sizes(x)
        programs = triton.cdiv(len(x), sizes["BLOCK"] * _BLOCKS)
        grad_x = torch.empty_like(x)
        partial = torch.empty(2, programs, sizes["WIDTH"], device=x.device)
        _gradient_kernel[(programs,)](
            x, weight, grad.contiguous(), grad_x, *partial.unbind(), len(x), ctx.eps, **sizes, BLOCKS=_BLOCKS,
            num_warps=4,
        )  # fmt: skip
        return grad_x, *partial.sum(1)[:, : x.shape[1]].to(weight.dtype).unbind(), None


def _sizes(x: Tensor) -> dict[str, int]:
    width = triton.next_power_of_2(x.shape[1])
    return {"CHANNELS": x.shape[1], "WIDTH": width, "BLOCK": max(1, 2048 // width)}


def row_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See `norms_torch.row_norm`."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return _RowNorm.apply(rows, weight, bias, eps).view(x.shape)
