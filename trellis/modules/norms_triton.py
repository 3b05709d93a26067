"""Normalisations as Triton kernels: per head in one pass over the input, per group in three.

Where a gradient of the group norm is wanted the reference does the work.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import norms_torch
from .head_norms_triton import norm_and_rotate, rms_norm_heads
from .residual_norm_triton import add_and_modulated_norm, add_and_norm, add_branch, modulated_norm
from .row_norm_triton import row_norm
from .sparse.tensor import Sites

__all__ = [
    "add_and_modulated_norm", "add_and_norm", "add_branch", "group_norm", "modulated_norm", "norm_and_rotate",
    "rms_norm_heads", "row_norm", "self_test",
]  # fmt: skip

_CHUNK = 1024  # rows of one partial sum of the group norm
_TILE = 32


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
    """Run every kernel that inference needs on a few rows."""
    with torch.no_grad():
        x = torch.ones(4, 2, 16, device=device)
        rms_norm_heads(x, torch.ones(2, 16, device=device))
        row_norm(x, *torch.ones(2, 16, device=device), 1e-5)
        table = torch.ones(2, 4, 16, device=device).unbind()
        norm_and_rotate(x.transpose(0, 1)[None], *torch.ones(2, 16, device=device), 1e-5, table)
        gate = x[:2, :1]  # [2, 1, 16] for x [2, 4, 16]
        tokens = x.view(2, 4, 16)
        add_branch(tokens, tokens, gate)
        add_branch(x.view(8, 16), x.view(8, 16), place=torch.arange(8, device=device))
        modulated_norm(tokens, gate, gate, 1e-5)
        add_and_modulated_norm(tokens, [tokens], None, gate, gate, 1e-5)
        add_and_norm(tokens, [tokens], gate, *torch.ones(2, 16, device=device), 1e-5)
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


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
