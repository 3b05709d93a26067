"""Half precision for the torso of a network, float32 for everything that needs it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .norm import MultiHeadRMSNorm


def cast_torso(modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Cast linear and convolution weights inside `modules` in place; norm affines and buffers keep float32.

    The split is the one of the published half-precision checkpoints: their norms (any layer of this package or of
    torch that normalises) stay float32, all other parameters of the torso are float16.
    """
    norms = (nn.LayerNorm, nn.GroupNorm, MultiHeadRMSNorm)
    for root in modules:
        for module in root.modules():
            if isinstance(module, norms):
                continue
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


class MixedPrecisionModel(nn.Module):
    """A network whose torso runs in `dtype` while its first and last layers stay float32.

    Subclasses override `torso` and, in `forward`, cast activations to `self.dtype` before the torso and back after it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float32

    def torso(self) -> Iterable[nn.Module]:
        """The modules that `convert_to_fp16` converts."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    def convert_to(self, dtype: torch.dtype) -> None:
        """Cast the torso to `dtype` (float32, float16 or bfloat16)."""
        cast_torso(self.torso(), dtype)
        self.dtype = dtype

    def convert_to_fp16(self) -> None:
        """Cast the torso to float16."""
        self.convert_to(torch.float16)

    def convert_to_fp32(self) -> None:
        """Cast the torso back to float32, for devices without half-precision arithmetic."""
        self.convert_to(torch.float32)
