"""Attention by cuDNN's fused kernels where lengths repeat, and by torch's other ones where every object has its own.

cuDNN plans for up to seconds when it meets a new length, then it is the fastest on recent GPUs. Torch prefers it there
by itself in some versions and not in others; this asks for it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import attention_sdpa
from .attention_sdpa import attend_segments, attend_voxels

__all__ = ["attend", "attend_segments", "attend_voxels", "self_test"]

_PREFERENCE = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]  # fmt: skip


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See `attention_sdpa.attend`. What cuDNN does not take, and what is trained, is left to torch's own choice."""
    if q.dtype not in (torch.float16, torch.bfloat16) or (torch.is_grad_enabled() and q.requires_grad):
        return attention_sdpa.attend(q, k, v)
    with sdpa_kernel(_PREFERENCE, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v)


def self_test(device: Any) -> None:
    """Run cuDNN's kernel alone, which is an error where it cannot be had or, in older versions of torch, come first."""
    if "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        raise RuntimeError(f"torch {torch.__version__} cannot be asked to prefer it")
    q = torch.zeros(1, 1, 64, 64, dtype=torch.float16, device=device)
    with torch.no_grad(), sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        F.scaled_dot_product_attention(q, q, q)
