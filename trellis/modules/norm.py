"""Normalisation layers whose statistics are always float32, whatever the precision of the network around them.

Each layer returns the dtype it was given: half-precision sums over thousands of values lose the mean and the variance,
half-precision activations do not lose the picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trellis import backends


def _float_or_none(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.float()


class LayerNorm32(nn.LayerNorm):
    """Layer norm over the last dimension, computed in float32. Same constructor as `torch.nn.LayerNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C] -> [..., C]`, dtype kept."""
        if self.weight is None:  # torch's own kernel keeps float32 statistics of half-precision input
            return F.layer_norm(x, self.normalized_shape, None, None, self.eps).to(x.dtype)
        return backends.of("norms", x.device).row_norm(x, self.weight, self.bias, self.eps)


class GroupNorm32(nn.GroupNorm):
    """Group norm over `[B, C, ...]`, computed in float32. Same constructor as `torch.nn.GroupNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, ...] -> [B, C, ...]`, dtype kept."""
        weight, bias = _float_or_none(self.weight), _float_or_none(self.bias)
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class ChannelLayerNorm32(nn.LayerNorm):
    """Layer norm over the channels of `[B, C, ...]`: every position is normalised on its own."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, ...] -> [B, C, ...]`, dtype kept. The result is a view in channels-last order."""
        norm = backends.of("norms", x.device).row_norm
        return norm(x.movedim(1, -1), self.weight, self.bias, self.eps).movedim(-1, 1)


class MultiHeadRMSNorm(nn.Module):
    """RMS norm of queries or keys, one learned scale per head and channel (Zhang and Sennrich 2019, arXiv:1910.07467).

    Args:
        dim: channels per head.
        heads: number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., heads, dim] -> [..., heads, dim]`, dtype kept."""
        return backends.of("norms", x.device).rms_norm_heads(x, self.gamma)
