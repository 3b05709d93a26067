"""Attention by torch's own fused kernels: the reference, and the default everywhere.

On a GPU torch may pick cuDNN, which plans for close to a second whenever it meets a new length. That is fine where
lengths repeat (dense tokens) and ruinous where every object has its own (voxels), so those calls exclude it. Segments
of unequal length run without padding where torch has attention over packed sequences.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from .sparse.attention import Segments

_WITHOUT_PLANNING = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention: ``q [B, H, L, D]``, ``k, v [B, H, M, D] -> [B, H, L, D]``."""
    return F.scaled_dot_product_attention(q, k, v)


def attend_voxels(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`attend` for lengths that are different for each object; `mask` is True where a key takes part."""
    with _exclude_planning(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_segments(qkv: Tensor, segments: Segments) -> Tensor:
    """Self-attention within each segment: ``qkv [N, 3, H, D] -> [N, H, D]``."""
    packed = _packed_attention() if _can_pack(qkv, segments) else None
    return _padded_attention(qkv, segments) if packed is None else segments.packed(qkv, packed)


def _padded_attention(qkv: Tensor, segments: Segments) -> Tensor:
    outputs = []
    for bucket in segments.buckets:
        q, k, v = segments.padded(qkv, bucket).permute(2, 0, 3, 1, 4)  # each [W, H, L, D]
        outputs.append(attend_voxels(q, k, v, bucket.mask))
    return segments.collect(outputs)


def _can_pack(qkv: Tensor, segments: Segments) -> bool:
    """The packed kernels take half precision only; a single segment is dense attention anyway."""
    half = qkv.dtype in (torch.float16, torch.bfloat16)
    return half and qkv.is_cuda and not segments.is_single and qkv.shape[-1] % 8 == 0 and not qkv.requires_grad


@functools.lru_cache(maxsize=1)
def _packed_attention() -> Callable[..., Tensor] | None:
    """torch's attention over packed sequences (2.10 and later), as (q, k, v, offsets, longest) -> out."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return lambda q, k, v, offsets, longest: varlen_attn(q, k, v, offsets, offsets, longest, longest)


def _exclude_planning(q: Tensor) -> AbstractContextManager:
    return sdpa_kernel(_WITHOUT_PLANNING) if q.is_cuda else nullcontext()
