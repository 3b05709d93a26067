"""All random numbers of a run: what the two flows start from. Drawn on the CPU, so a seed means the same everywhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trellis.errors import InputError

_SEEDS_APART = 0x9E3779B97F4A7C15 >> 1  # between the candidates of a seed, so that none is another seed's first


def structure_noise(flow: nn.Module, seed: int, candidate: int = 0) -> Tensor:
    """The start of the structure flow, [1, C, R, R, R] on the CPU: the first draw of the seed's stream, and for further
    candidates that of a stream of their own."""
    return _dense(flow, _generator(seed, candidate))


def latent_noise(structure_flow: nn.Module, latent_flow: nn.Module, seed: int, voxels: int) -> Tensor:
    """The start of the latent flow, [voxels, C] on the CPU: the seed's stream, after the draw for the structure."""
    generator = _generator(seed)
    _dense(structure_flow, generator)
    return torch.randn(voxels, latent_flow.in_channels, generator=generator)


def _dense(flow: nn.Module, generator: torch.Generator) -> Tensor:
    return torch.randn(1, flow.in_channels, *(flow.resolution,) * 3, generator=generator)


def _generator(seed: int, candidate: int = 0) -> torch.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"The seed must be a whole number from 0 to 2^63 - 1, but is {seed!r}.")
    return torch.Generator().manual_seed((seed + candidate * _SEEDS_APART) % 2**63)
