"""Normalisations that read their input once (the group norm three times), as Triton kernels without gradients.

Where a gradient is wanted the reference does the work.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import norms_torch
from .rope import RotaryTable
from .sparse.tensor import Sites

_CHUNK = 1024  # rows of one partial sum of the group norm
_TILE = 32


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


@triton.jit(do_not_specialize=["rows"])
def _moments_kernel(
    x, means, squares, rows, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr
):
    """Per chunk of rows and per channel: the mean, and the sum of squared deviations from it."""
    chunk = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, CHUNK, TILE):
        row = chunk * CHUNK + start + tl.arange(0, TILE)
        inside = (row < rows)[:, None] & (c < CHANNELS)[None, :]
        value = tl.load(x + row[:, None] * CHANNELS + c[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(value, axis=0)
    count = tl.minimum(rows - chunk * CHUNK, CHUNK).to(tl.float32)
    mean = total / count
    square = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, CHUNK, TILE):
        row = chunk * CHUNK + start + tl.arange(0, TILE)
        inside = (row < rows)[:, None] & (c < CHANNELS)[None, :]
        value = tl.load(x + row[:, None] * CHANNELS + c[None, :], mask=inside, other=0.0).to(tl.float32)
        deviation = tl.where(inside, value - mean[None, :], 0.0)
        square += tl.sum(deviation * deviation, axis=0)
    tl.store(means + chunk * CHANNELS + c, mean, mask=c < CHANNELS)
    tl.store(squares + chunk * CHANNELS + c, square, mask=c < CHANNELS)


@triton.jit(do_not_specialize=["rows"])
def _affine_kernel(
    x, scale, shift, out, rows, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, SILU: tl.constexpr
):
    """out = x * scale + shift per channel, then SiLU."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    c = tl.arange(0, WIDTH)
    is_channel = c < CHANNELS
    inside = (row < rows)[:, None] & is_channel[None, :]
    at = row[:, None] * CHANNELS + c[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = value * tl.load(scale + c, mask=is_channel, other=0.0)[None, :]
    value += tl.load(shift + c, mask=is_channel, other=0.0)[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def rms_norm_heads(x: Tensor, gamma: Tensor) -> Tensor:
    """See `norms_torch.rms_norm_heads`."""
    heads, dim = x.shape[-2:]
    rows = _as_rows(x, 2)
    if rows is None or not _is_power_of_two(dim) or _wants_gradient(x, gamma):
        return norms_torch.rms_norm_heads(x, gamma)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = _pairs_per_program(dim)
    grid = (triton.cdiv(len(rows) * heads, block),)
    _rms_kernel[grid](
        rows, gamma, out, len(rows), rows.stride(0), HEADS=heads, DIM=dim, BLOCK=block, num_warps=4
    )
    return out


def norm_and_rotate(x: Tensor, weight: Tensor, bias: Tensor, eps: float, table: RotaryTable) -> Tensor:
    """See `norms_torch.norm_and_rotate`."""
    tokens = x.transpose(1, 2)  # [B, N, H, D], as the projection laid them out
    heads, dim = tokens.shape[-2:]
    rows = _as_rows(tokens, 2)
    if rows is None or not _is_power_of_two(dim) or _wants_gradient(x, weight):
        return norms_torch.norm_and_rotate(x, weight, bias, eps, table)
    cosines, sines = (part.contiguous() for part in table)
    out = torch.empty(tokens.shape, dtype=x.dtype, device=x.device)
    block = _pairs_per_program(dim)
    grid = (triton.cdiv(len(rows) * heads, block),)
    _rotate_kernel[grid](
        rows, weight, bias, cosines, sines, out, len(rows), len(cosines), rows.stride(0), eps,
        HEADS=heads, DIM=dim, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out.transpose(1, 2)


def group_norm(
    feats: Tensor, sites: Sites, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, silu: bool
) -> Tensor:
    """See `norms_torch.group_norm`."""
    if _wants_gradient(feats, weight):
        return norms_torch.group_norm(feats, sites, groups, weight, bias, eps, silu)
    feats = feats.contiguous()
    out = torch.empty_like(feats)
    for rows in sites.layout:
        if rows.stop > rows.start:
            _normalise(feats[rows], out[rows], groups, weight, bias, eps, silu)
    return out


def self_test(device: Any) -> None:
    """Run every kernel on a few rows."""
    x = torch.ones(4, 2, 16, device=device)
    rms_norm_heads(x, torch.ones(2, 16, device=device))
    table = torch.ones(2, 4, 16, device=device).unbind()
    norm_and_rotate(x.transpose(0, 1)[None], *torch.ones(2, 16, device=device), 1e-5, table)
    sites = Sites(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.int32, device=device))
    group_norm(torch.ones(2, 32, device=device), sites, 4, None, None, 1e-5, True)


def _normalise(
    x: Tensor, out: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, silu: bool
) -> None:
    """Group norm of one sample ``[n, C]`` into `out`. Partial moments are joined as in Chan et al. 1979."""
    rows, channels = x.shape
    width = triton.next_power_of_2(channels)
    chunks = triton.cdiv(rows, _CHUNK)
    means, squares = torch.empty(2, chunks, channels, device=x.device).unbind()
    _moments_kernel[(chunks,)](x, means, squares, rows, channels, width, _CHUNK, _TILE, num_warps=4)
    counts = torch.full((chunks, 1, 1), float(_CHUNK), device=x.device)
    counts[-1] = rows - (chunks - 1) * _CHUNK
    means, squares = (part.unflatten(1, (groups, -1)) for part in (means, squares))  # [chunks, G, C / G]
    size = rows * means.shape[2]
    mean = (means * counts).sum((0, 2)) / size  # [G]
    variance = (squares + counts * (means - mean[:, None]).square()).sum((0, 2)) / size
    scale = (variance + eps).rsqrt().repeat_interleave(channels // groups)
    shift = -mean.repeat_interleave(channels // groups) * scale
    if weight is not None:
        scale, shift = scale * weight.float(), shift * weight.float() + bias.float()
    _affine_kernel[(triton.cdiv(rows, _TILE),)](
        x, scale, shift, out, rows, channels, width, _TILE, silu, num_warps=4
    )


def _as_rows(x: Tensor, kept: int) -> Tensor | None:
    """``[..., H, D]`` as ``[rows, H, D]`` without a copy; None if its heads are not side by side or that is no view."""
    if x.stride(-1) != 1 or x.stride(-2) != x.shape[-1]:
        return None
    try:
        return x.view(-1, *x.shape[-kept:])
    except RuntimeError:
        return None


def _pairs_per_program(dim: int) -> int:
    return max(1, 2048 // dim)


def _is_power_of_two(n: int) -> bool:
    return n >= 16 and n & (n - 1) == 0


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
