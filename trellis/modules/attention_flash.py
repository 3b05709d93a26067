"""Attention by the flash-attn package (Dao 2023, arXiv:2307.08691); float32, which it does not take, goes to torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from flash_attn import flash_attn_func, flash_attn_varlen_func
from torch import Tensor

from . import attention_sdpa

if TYPE_CHECKING:
    from .sparse.attention import Segments


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See `attention_sdpa.attend`."""
    if not _takes(q):
        return attention_sdpa.attend(q, k, v)
    return flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def attend_voxels(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """See `attention_sdpa.attend_voxels`."""
    return attention_sdpa.attend_voxels(q, k, v, mask) if mask is not None else attend(q, k, v)


def attend_segments(qkv: Tensor, segments: Segments) -> Tensor:
    """See `attention_sdpa.attend_segments`."""
    return segments.packed(qkv, _packed) if _takes(qkv) else attention_sdpa.attend_segments(qkv, segments)


def self_test(device: Any) -> None:
    """Run both functions once."""
    q = torch.zeros(1, 1, 8, 32, dtype=torch.float16, device=device)
    attend(q, q, q)
    rows = q[0].transpose(0, 1)
    _packed(rows, rows, rows, torch.tensor([0, 3, 8], dtype=torch.int32, device=device), 5)


def _takes(x: Tensor) -> bool:
    return x.dtype in (torch.float16, torch.bfloat16) and x.shape[-1] % 8 == 0


def _packed(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> Tensor:
    return flash_attn_varlen_func(q, k, v, offsets, offsets, longest, longest)
