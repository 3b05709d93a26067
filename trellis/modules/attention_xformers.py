"""Attention by xformers' memory-efficient kernels (Rabe and Staats 2021, arXiv:2112.05682)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from xformers.ops import memory_efficient_attention
from xformers.ops.fmha.attn_bias import BlockDiagonalMask

from . import attention_sdpa

if TYPE_CHECKING:
    from .sparse.attention import Segments


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See `attention_sdpa.attend`."""
    rows = (x.transpose(1, 2) for x in (q, k, v))
    return memory_efficient_attention(*rows).transpose(1, 2)


def attend_voxels(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """See `attention_sdpa.attend_voxels`."""
    return attention_sdpa.attend_voxels(q, k, v, mask) if mask is not None else attend(q, k, v)


def attend_segments(qkv: Tensor, segments: Segments) -> Tensor:
    """See `attention_sdpa.attend_segments`."""
    if segments.is_single:
        q, k, v = (x.transpose(0, 1)[None] for x in qkv.unbind(1))
        return attend(q, k, v)[0].transpose(0, 1)
    bias = BlockDiagonalMask.from_seqlens(segments.lengths)

    def packed(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> Tensor:
        return memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias)[0]

    return segments.packed(qkv, packed)


def self_test(device: Any) -> None:
    """Run the kernel once."""
    q = torch.zeros(1, 1, 8, 32, dtype=torch.float16, device=device)
    attend(q, q, q)
