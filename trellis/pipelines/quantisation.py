"""Eight-bit storage of weights, so that a checkpoint can ship with the code.

A quantised tensor `key` is stored as int8 with a float32 scale per row under `key:scale`. Networks never see it:
weights are float32 again as soon as they are read, so only the download is smaller. Rows of one matrix differ in size
by orders of magnitude, hence a scale for each (symmetric per-channel weights; Jacob et al. 2018, arXiv:1712.05877).
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_SUFFIX = ":scale"
_LEVELS = 127
_SMALLEST = 4096  # elements; below, scales would eat the saving


def quantise(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and convolution kernels to int8 with a scale per row; everything else unchanged.

    A value moves by at most half a level, 1/254 of the largest of its row. Rows of zeros stay zeros.
    """
    stored: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.ndim < 2 or value.numel() < _SMALLEST or not value.is_floating_point():
            stored[key] = value
            continue
        rows = value.float().flatten(1)
        scale = rows.abs().amax(1) / _LEVELS
        levels = (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
        stored[key] = levels.to(torch.int8).reshape(value.shape)
        stored[key + SCALE_SUFFIX] = scale
    return stored


def dequantise(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The float32 weights of a state dict of which some entries have a scale beside them; others unchanged.

    Raises:
        ValueError: a scale without its int8 tensor, or with another number of rows.
    """
    weights = {key: value for key, value in state.items() if not key.endswith(SCALE_SUFFIX)}
    for scale_key in state.keys() - weights.keys():
        key, scale = scale_key.removesuffix(SCALE_SUFFIX), state[scale_key]
        levels = weights.get(key)
        if levels is None or levels.dtype != torch.int8 or scale.shape != levels.shape[:1]:
            raise ValueError(f"the scale {scale_key} {list(scale.shape)} does not belong to an int8 tensor")
        weights[key] = levels.float() * scale.reshape(-1, *[1] * (levels.ndim - 1))
    return weights
