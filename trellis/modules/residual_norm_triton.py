"""What lies between the products of a transformer block, in one pass: gated residual sum, layer norm, modulation.

Apart, these are four to six passes over all tokens, and they take longer than the attention of a small head. Inference
only: where a gradient is wanted, the same is done step by step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import norms_torch
from .row_norm_triton import row_norm


@triton.jit(do_not_specialize=["rows", "rows_per_sample"])
def _kernel(
    x, branch, gate, scale, shift, place, out, normed,
    rows, rows_per_sample, branch_stride, gate_stride, scale_stride, shift_stride, eps,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BRANCH: tl.constexpr, GATE: tl.constexpr,
    NORM: tl.constexpr, SCALE: tl.constexpr, MODULATE: tl.constexpr, PLACE: tl.constexpr,
):  # fmt: skip
    """out = x + gate * branch, normed = norm(out) * scale + shift; what a flag leaves out is neither read nor written.

    Strides lead from one row of `branch`, or one sample of the others, to the next; 0 where all share one.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, WIDTH)
    is_channel = (c < CHANNELS)[None, :]
    inside = (row < rows)[:, None] & is_channel
    sample = row // rows_per_sample
    value = tl.load(x + row[:, None] * CHANNELS + c[None, :], mask=inside, other=0.0).to(tl.float32)
    if BRANCH:
        added = tl.load(branch + row[:, None] * branch_stride + c[None, :], mask=inside, other=0.0).to(tl.float32)
        if GATE:
            added *= tl.load(gate + sample[:, None] * gate_stride + c[None, :], mask=inside, other=0.0).to(tl.float32)
        target = row
        if PLACE:
            target = tl.load(place + row, mask=row < rows, other=0).to(tl.int64)
        rounded = (value + added).to(out.dtype.element_ty)
        tl.store(out + target[:, None] * CHANNELS + c[None, :], rounded, mask=inside)
        value = rounded.to(tl.float32)
    if NORM:
        centred = tl.where(inside, value - (tl.sum(value, axis=1) / CHANNELS)[:, None], 0.0)
        y = centred * tl.rsqrt(tl.sum(centred * centred, axis=1) / CHANNELS + eps)[:, None]
        if SCALE:
            factor = tl.load(scale + sample[:, None] * scale_stride + c[None, :], mask=inside, other=0.0)
            factor = factor.to(tl.float32)
            if MODULATE:
                factor += 1.0
            offset = tl.load(shift + sample[:, None] * shift_stride + c[None, :], mask=inside, other=0.0)
            y = y * factor + offset.to(tl.float32)
        tl.store(normed + row[:, None] * CHANNELS + c[None, :], y.to(normed.dtype.element_ty), mask=inside)


def add_branch(x: Tensor, branch: Tensor, gate: Tensor | None = None, place: Tensor | None = None) -> Tensor:
    """See `norms_torch.add_branch`."""
    if not _can_fuse(x, branch, gate):
        return norms_torch.add_branch(x, branch, gate, place)
    return _run(x, [branch], gate, place=place)[0]


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """See `norms_torch.modulated_norm`."""
    if not _can_fuse(x, scale, shift):
        return norms_torch.modulated_norm(x, scale, shift, eps)
    return _run(x, [], None, (scale, shift), eps, modulate=True)[1]


def add_and_modulated_norm(
    x: Tensor, branches: Sequence[Tensor], gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `norms_torch.add_and_modulated_norm`."""
    if not _can_fuse(x, *branches, gate, scale, shift):
        return norms_torch.add_and_modulated_norm(x, branches, gate, scale, shift, eps)
    return _run(x, branches, gate, (scale, shift), eps, modulate=True)


def add_and_norm(
    x: Tensor, branches: Sequence[Tensor], gate: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See `norms_torch.add_and_norm`."""
    if not _can_fuse(x, *branches, gate, fixed=(weight, bias)):
        return norms_torch.add_and_norm(x, branches, gate, weight, bias, eps, row_norm)
    return _run(x, branches, gate, None if weight is None else (weight, bias), eps)


def _can_fuse(x: Tensor, *others: Tensor | None, fixed: Sequence[Tensor | None] = ()) -> bool:
    """Whether no gradient is wanted, no operand would widen the result, and rows lie where the kernel looks for them.

    `fixed` are parameters, which never widen it.
    """
    recording, dtype = torch.is_grad_enabled(), x.dtype
    if not x.is_contiguous() or x.numel() == 0 or (recording and x.requires_grad):
        return False
    for t in others:
        if t is not None:
            if t.dtype is not dtype and torch.promote_types(t.dtype, dtype) != dtype:
                return False
            if t.stride(-1) != 1 or (recording and t.requires_grad):
                return False
    return not (recording and any(t is not None and t.requires_grad for t in fixed))


def _run(
    x: Tensor,
    branches: Sequence[Tensor],
    gate: Tensor | None,
    affine: tuple[Tensor, Tensor] | None = None,
    eps: float | None = None,
    modulate: bool = False,
    place: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum (`x` itself without a branch), and its norm (without `eps` nothing but the sum).

    Written for few steps of Python: between large matrix products the host has well under a millisecond for a block.
    """
    channels = x.shape[-1]
    scale, shift = affine or (None, None)
    samples = max((len(t) for t in (gate, scale, shift) if t is not None and t.ndim > 1), default=1)
    each = x.numel() // channels // samples
    out = torch.empty_like(x) if branches else x
    normed = x if eps is None else torch.empty_like(x)
    if len(branches) < 2:
        _launch(x, branches[0] if branches else None, gate, scale, shift, out, normed, each, eps, modulate, place)
        return out, normed
    start = 0
    for branch in branches:
        here = slice(start, start + len(branch))
        # Per-sample rows begin with this part's; what all samples share stays.
        gates, scales, shifts = (
            t if t is None or t.ndim == 1 or len(t) == 1 else t[here] for t in (gate, scale, shift)
        )
        _launch(x[here], branch, gates, scales, shifts, out[here], normed[here], each, eps, modulate, place)
        start += len(branch)
    return out, normed


def _launch(
    x: Tensor, branch: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None,
    out: Tensor, normed: Tensor, each: int, eps: float | None, modulate: bool, place: Tensor | None,
) -> None:  # fmt: skip
    """One launch; `each` is the number of rows of a sample."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    stride = channels
    if branch is not None and not branch.is_contiguous():
        if branch.stride(-2) == 0 and (branch.ndim == 2 or len(branch) == 1 or branch.stride(0) == 0):
            stride = 0  # one row, expanded to all
        else:
            branch = branch.contiguous()
    width = triton.next_power_of_2(channels)
    block = max(1, 2048 // width)
    _kernel[(triton.cdiv(rows, block),)](
        x,
        x if branch is None else branch,
        x if gate is None else gate,
        x if scale is None else scale,
        x if shift is None else shift,
        x if place is None else place,
        out, normed, rows, each, stride, _sample_stride(gate), _sample_stride(scale), _sample_stride(shift),
        0.0 if eps is None else eps,
        CHANNELS=channels, WIDTH=width, BLOCK=block, BRANCH=branch is not None, GATE=gate is not None,
        NORM=eps is not None, SCALE=scale is not None, MODULATE=modulate, PLACE=place is not None, num_warps=4,
    )  # fmt: skip


def _sample_stride(t: Tensor | None) -> int:
    """From one sample's row to the next; 0 where there is one for all."""
    return 0 if t is None or t.ndim == 1 or len(t) == 1 else t.stride(0)
