"""Sinusoidal embeddings of grid positions and of the time of a flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class AbsolutePositionEmbedder(nn.Module):
    """Fixed sine/cosine embedding of integer grid coordinates (Vaswani et al. 2017, one table per axis).

    Each axis gets `channels // in_channels // 2` frequencies `10000^(-k/f)`, laid out `[sin | cos]`, axis after axis;
    what is left of the width is zero.

    Args:
        channels: width of the embedding.
        in_channels: number of axes.
    """

    def __init__(self, channels: int, in_channels: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.in_channels = in_channels
        self.num_frequencies = channels // in_channels // 2
        if self.num_frequencies == 0:
            need = 2 * in_channels
            raise ValueError(f"{channels} channels cannot embed {in_channels} axes: at least {need} are needed.")

    def forward(self, coords: Tensor) -> Tensor:
        """`coords [N, in_channels]` (integer or float) `-> [N, channels]` float32."""
        if coords.ndim != 2 or coords.shape[1] != self.in_channels:
            raise ValueError(f"Coordinates must be [N, {self.in_channels}], got {list(coords.shape)}.")
        # Recomputed on each call: a buffer outside the state dict would be left empty by loading onto a meta module.
        k = torch.arange(self.num_frequencies, dtype=torch.float32, device=coords.device)
        frequencies = 10000.0 ** (-k / self.num_frequencies)
        angles = coords.float()[:, :, None] * frequencies  # [N, axes, f]
        embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)  # [N, axes * 2f]
        return nn.functional.pad(embedding, (0, self.channels - embedding.shape[1]))


class TimestepEmbedder(nn.Module):
    """Embeds scalar times: 256 sinusoids, then a two-layer perceptron.

    Args:
        hidden_size: width of the result.
        frequency_embedding_size: number of sinusoids (even).
    """

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256) -> None:
        super().__init__()
        self.frequency_embedding_size = frequency_embedding_size
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    @staticmethod
    def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
        """`t [B] -> [B, dim]` float32: `dim/2` cosines, then as many sines, frequencies `max_period^(-k / (dim/2))`."""
        half = dim // 2
        k = torch.arange(half, dtype=torch.float32, device=t.device)
        frequencies = torch.exp(-math.log(max_period) * k / half)
        angles = t.float()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, t: Tensor) -> Tensor:
        """`t [B]`, already scaled to about [0, 1000], `-> [B, hidden_size]`."""
        embedding = self.timestep_embedding(t, self.frequency_embedding_size)
        return self.mlp(embedding.to(self.mlp[0].weight.dtype))
