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


def autocast_dtype(device: torch.device) -> torch.dtype:
    """The half type that a GPU calculates in fastest: bfloat16 from compute capability 8 on, else float16."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.bfloat16


def store_for_autocast(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep linear and convolution parameters in the type that autocast converts them to at each use.

    Under autocast to `dtype` the results are the same bits, in half the memory and without the conversion. With
    `torch.float32` the parameters become float32 again; what a half type has rounded stays rounded.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            for parameter in layer.parameters(recurse=False):
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
