"""Norms of queries and keys, per head, as Triton kernels with gradients: one pass forward, one pass backward.

Heads are 64 numbers or so. Torch's kernels spend a thread block on each, and its autograd keeps several float32 copies.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import norms_torch
from .rope import RotaryTable

_BLOCKS = 16  # blocks of heads that share one partial sum of the gradients of scale and shift


@triton.jit(do_not_specialize=["rows"])
def _rms_kernel(x, gamma, out, rows, stride, HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """out[r, h] = x[r, h] / max(|x[r, h]|, 1e-12) * gamma[h] * sqrt(DIM); the heads of a row lie side by side."""
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, head = pair // HEADS, pair % HEADS
    d = tl.arange(0, DIM)
    is_pair = (pair < rows * HEADS)[:, None]
    value = tl.load(x + row[:, None] * stride + head[:, None] * DIM + d[None, :], mask=is_pair, other=0.0)
    value = value.to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(value * value, axis=1)), 1e-12)
    scale = tl.load(gamma + head[:, None] * DIM + d[None, :], mask=is_pair, other=0.0).to(tl.float32)
    value = value / length[:, None] * scale * tl.sqrt(DIM * 1.0)
    tl.store(out + pair[:, None] * DIM + d[None, :], value.to(out.dtype.element_ty), mask=is_pair)


@triton.jit(do_not_specialize=["rows"])
def _rms_gradient_kernel(
    x, gamma, grad, grad_x, grad_gamma, rows, stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """With n = x / |x| and g = grad * gamma * sqrt(DIM): grad_x = (g - n (n . g)) / |x|. One program, one head."""
    head = tl.program_id(1)
    d = tl.arange(0, DIM)
    root = tl.sqrt(DIM * 1.0)
    scale = tl.load(gamma + head * DIM + d).to(tl.float32) * root
    total = tl.zeros((DIM,), tl.float32)
    for block in range(BLOCKS):
        row = (tl.program_id(0).to(tl.int64) * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        is_row = (row < rows)[:, None]
        value = tl.load(x + row[:, None] * stride + head * DIM + d[None, :], mask=is_row, other=0.0).to(tl.float32)
        at = (row[:, None] * HEADS + head) * DIM + d[None, :]
        upstream = tl.load(grad + at, mask=is_row, other=0.0).to(tl.float32)
        length = tl.maximum(tl.sqrt(tl.sum(value * value, axis=1)), 1e-12)[:, None]
        unit = value / length
        total += tl.sum(upstream * unit, axis=0) * root
        g = upstream * scale[None, :]
        g = (g - unit * tl.sum(unit * g, axis=1)[:, None]) / length
        tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=is_row)
    tl.store(grad_gamma + (tl.program_id(0) * HEADS + head) * DIM + d, total)


@triton.jit(do_not_specialize=["rows", "positions"])
def _rotate_kernel(
    x, weight, bias, cosines, sines, out, rows, positions, stride, eps,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Layer norm of x[r, h], then out = y * cos + y[partner] * sin with the table's row r % positions."""
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, head = pair // HEADS, pair % HEADS
    d = tl.arange(0, DIM)
    partner = d ^ (DIM // 4)  # halves of each half of a head are paired
    is_pair = (pair < rows * HEADS)[:, None]
    first = x + row[:, None] * stride + head[:, None] * DIM
    value = tl.load(first + d[None, :], mask=is_pair, other=0.0).to(tl.float32)
    other = tl.load(first + partner[None, :], mask=is_pair, other=0.0).to(tl.float32)
    mean = (tl.sum(value, axis=1) / DIM)[:, None]
    centred = value - mean
    spread = tl.rsqrt(tl.sum(centred * centred, axis=1) / DIM + eps)[:, None]
    y = centred * spread * tl.load(weight + d).to(tl.float32)[None, :] + tl.load(bias + d).to(tl.float32)[None, :]
    z = (other - mean) * spread * tl.load(weight + partner).to(tl.float32)[None, :]
    z += tl.load(bias + partner).to(tl.float32)[None, :]
    at = (row % positions)[:, None] * DIM + d[None, :]
    y = y * tl.load(cosines + at, mask=is_pair, other=0.0) + z * tl.load(sines + at, mask=is_pair, other=0.0)
    tl.store(out + pair[:, None] * DIM + d[None, :], y.to(out.dtype.element_ty), mask=is_pair)


@triton.jit(do_not_specialize=["rows", "positions"])
def _rotate_gradient_kernel(
    x, weight, cosines, sines, grad, grad_x, grad_weight, grad_bias, rows, positions, stride, eps,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The rotation turned back, dy = grad * cos + (grad * sin)[partner], then the gradient of the layer norm."""
    d = tl.arange(0, DIM)
    partner = d ^ (DIM // 4)
    scale = tl.load(weight + d).to(tl.float32)
    total_weight = tl.zeros((DIM,), tl.float32)
    total_bias = tl.zeros((DIM,), tl.float32)
    for block in range(BLOCKS):
        pair = (tl.program_id(0).to(tl.int64) * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        row, head = pair // HEADS, pair % HEADS
        is_pair = (pair < rows * HEADS)[:, None]
        value = tl.load(x + row[:, None] * stride + head[:, None] * DIM + d[None, :], mask=is_pair, other=0.0)
        value = value.to(tl.float32)
        table = (row % positions)[:, None] * DIM
        from_own = tl.load(grad + pair[:, None] * DIM + d[None, :], mask=is_pair, other=0.0).to(tl.float32)
        from_own = from_own * tl.load(cosines + table + d[None, :], mask=is_pair, other=0.0)
        crossed = tl.load(grad + pair[:, None] * DIM + partner[None, :], mask=is_pair, other=0.0).to(tl.float32)
        upstream = from_own + crossed * tl.load(sines + table + partner[None, :], mask=is_pair, other=0.0)
        centred = value - (tl.sum(value, axis=1) / DIM)[:, None]
        spread = tl.rsqrt(tl.sum(centred * centred, axis=1) / DIM + eps)[:, None]
        unit = centred * spread
        total_weight += tl.sum(upstream * unit, axis=0)
        total_bias += tl.sum(upstream, axis=0)
        g = upstream * scale[None, :]
        g = spread * (g - (tl.sum(g, axis=1) / DIM)[:, None] - unit * (tl.sum(g * unit, axis=1) / DIM)[:, None])
        tl.store(grad_x + pair[:, None] * DIM + d[None, :], g.to(grad_x.dtype.element_ty), mask=is_pair)
    tl.store(grad_weight + tl.program_id(0) * DIM + d, total_weight)
    tl.store(grad_bias + tl.program_id(0) * DIM + d, total_bias)


class _RmsNorm(torch.autograd.Function):
    """x [rows, H, D] with side-by-side heads."""

    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor) -> Tensor:
        ctx.save_for_backward(x, gamma)
        return _rms_norm(x, gamma)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, gamma = ctx.saved_tensors
        heads, dim = x.shape[1:]
        block = _pairs_per_program(dim)
        programs = triton.cdiv(len(x), block * _BLOCKS)
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        partial = torch.empty(programs, heads, dim, device=x.device)
        _rms_gradient_kernel[(programs, heads)](
            x, gamma, grad.contiguous(), grad_x, partial, len(x), x.stride(0),
            HEADS=heads, DIM=dim, BLOCK=block, BLOCKS=_BLOCKS, num_warps=4,
        )  # fmt: skip
        return grad_x, partial.sum(0).to(gamma.dtype)


class _NormAndRotate(torch.autograd.Function):
    """x [rows, H, D] with side-by-side heads; tables [P, D]."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, cosines: Tensor, sines: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, cosines, sines)
        ctx.eps = eps
        heads, dim = x.shape[1:]
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        block = _pairs_per_program(dim)
        grid = (triton.cdiv(len(x) * heads, block),)
        _rotate_kernel[grid](
            x, weight, bias, cosines, sines, out, len(x), len(cosines), x.stride(0), eps,
            HEADS=heads, DIM=dim, BLOCK=block, num_warps=4,
        )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cosines, sines = ctx.saved_tensors
        heads, dim = x.shape[1:]
        block = _pairs_per_program(dim)
        programs = triton.cdiv(len(x) * heads, block * _BLOCKS)
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        partial = torch.empty(2, programs, dim, device=x.device)
        _rotate_gradient_kernel[(programs,)](
            x, weight, cosines, sines, grad.contiguous(), grad_x, *partial.unbind(), len(x), len(cosines),
            x.stride(0), ctx.eps, HEADS=heads, DIM=dim, BLOCK=block, BLOCKS=_BLOCKS, num_warps=4,
        )  # fmt: skip
        return grad_x, *partial.sum(1).to(weight.dtype).unbind(), None, None, None


def _rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    heads, dim = x.shape[1:]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = _pairs_per_program(dim)
    grid = (triton.cdiv(len(x) * heads, block),)
    _rms_kernel[grid](x, gamma, out, len(x), x.stride(0), HEADS=heads, DIM=dim, BLOCK=block, num_warps=4)
    return out


def rms_norm_heads(x: Tensor, gamma: Tensor) -> Tensor:
    """See `norms_torch.rms_norm_heads`."""
    rows = _as_rows(x)
    if rows is None:
        return norms_torch.rms_norm_heads(x, gamma)
    # Without a gradient the same without autograd's part, which takes the host longer than the kernel runs.
    norm = _RmsNorm.apply if torch.is_grad_enabled() else _rms_norm
    return norm(rows, gamma).view(x.shape)


def norm_and_rotate(x: Tensor, weight: Tensor, bias: Tensor, eps: float, table: RotaryTable) -> Tensor:
    """See `norms_torch.norm_and_rotate`."""
    tokens = x.transpose(1, 2)  # [B, N, H, D], as the projection laid them out
    rows = _as_rows(tokens)
    if rows is None:
        return norms_torch.norm_and_rotate(x, weight, bias, eps, table)
    out = _NormAndRotate.apply(rows, weight, bias, eps, *(part.contiguous() for part in table))
    return out.view(tokens.shape).transpose(1, 2)


def _as_rows(x: Tensor) -> Tensor | None:
    """``[..., H, D]`` as ``[rows, H, D]`` without a copy; None if that is no view, or not one that kernels read."""
    dim = x.shape[-1]
    if dim < 16 or dim & (dim - 1) or x.stride(-1) != 1 or x.stride(-2) != dim:
        return None
    try:
        return x.view(-1, *x.shape[-2:])
    except RuntimeError:
        return None


def _pairs_per_program(dim: int) -> int:
    return max(1, 2048 // dim)
