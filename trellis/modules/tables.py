"""Constant tables (positions, rotations, image statistics), built once per argument set and device.

Such tables are neither parameters nor buffers: they stay out of the state dict, and a network built on the meta device
and filled from a checkpoint is complete without them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps

import torch


def cached_table(build: Callable) -> Callable:
    """Keep the last few results of `build`, whose arguments (sizes, numbers, a device) must be hashable.

    While `torch.compile` traces, the table becomes part of the graph instead: a tensor kept from inside a graph could
    live in memory that CUDA graphs reuse. Cached tables are ordinary tensors even when first built in inference mode,
    so a later training step may use them.
    """

    @lru_cache(maxsize=32)
    def build_plain(*args):
        with torch.inference_mode(False), torch.no_grad():
            return build(*args)

    @wraps(build)
    def lookup(*args):
        return build(*args) if torch.compiler.is_compiling() else build_plain(*args)

    return lookup


@cached_table
def imagenet_statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of sRGB images in [0, 1], each [3, 1, 1], as DINOv2 was trained with."""
    mean = torch.tensor((0.485, 0.456, 0.406), device=device)
    std = torch.tensor((0.229, 0.224, 0.225), device=device)
    return mean.view(3, 1, 1), std.view(3, 1, 1)
