"""Occupancy grids to latents and back: the convolutional VAE of the sparse structure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules.norm import ChannelLayerNorm32, GroupNorm32
from ..modules.precision import MixedPrecisionModel
from ..modules.spatial import pixel_shuffle_3d
from ..modules.transformer import zero_init


def _make_norm(norm_type: str, channels: int) -> nn.Module:
    if norm_type == "layer":
        return ChannelLayerNorm32(channels)
    if norm_type == "group":
        return GroupNorm32(32, channels)
    raise ValueError(f"norm_type must be 'layer' or 'group', got {norm_type!r}.")


class ResBlock3d(nn.Module):
    """Norm, SiLU, 3x3x3 convolution, twice, added to the input; starts as the identity.

    Args:
        channels: width of input and output.
        norm_type: "layer" (per voxel) or "group" (32 groups).
    """

    def __init__(self, channels: int, norm_type: str = "layer") -> None:
        super().__init__()
        self.norm1 = _make_norm(norm_type, channels)
        self.norm2 = _make_norm(norm_type, channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        zero_init(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, X, Y, Z] -> [B, C, X, Y, Z]`."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Downsample3d(nn.Module):
    """2x2x2 convolution with stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, X, Y, Z] -> [B, C', X/2, Y/2, Z/2]`."""
        return self.conv(x)


class Upsample3d(nn.Module):
    """3x3x3 convolution to eight times the channels, then a 3-D pixel shuffle."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels * 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, X, Y, Z] -> [B, C', 2X, 2Y, 2Z]`."""
        return pixel_shuffle_3d(self.conv(x), 2)


def _make_levels(
    channels: Sequence[int], num_res_blocks: int, norm_type: str, resample: type[nn.Module]
) -> nn.ModuleList:
    """Residual blocks of each width, with a change of resolution between one width and the next."""
    blocks: list[nn.Module] = []
    for level, width in enumerate(channels):
        blocks += [ResBlock3d(width, norm_type) for _ in range(num_res_blocks)]
        if level + 1 < len(channels):
            blocks.append(resample(width, channels[level + 1]))
    return nn.ModuleList(blocks)


class _StructureNetwork(MixedPrecisionModel):
    """What encoder and decoder share: their parts and the precision of each."""

    input_layer: nn.Conv3d
    blocks: nn.ModuleList
    middle_block: nn.Sequential
    out_layer: nn.Sequential

    def torso(self) -> list[nn.Module]:
        """Every residual and resampling block."""
        return [self.blocks, self.middle_block]

    def _check_input(self, x: Tensor, what: str) -> None:
        channels = self.input_layer.in_channels
        if x.ndim != 5 or x.shape[1] != channels:
            raise ValueError(f"The {what} must be [B, {channels}, X, Y, Z], got {list(x.shape)}.")


class SparseStructureEncoder(_StructureNetwork):
    """Occupancy grid to a normal distribution over latents, at `2^(levels - 1)` times lower resolution.

    Args:
        in_channels: channels of the grid (1: occupancy).
        latent_channels: channels of the latent.
        num_res_blocks: residual blocks per level.
        channels: width of each level, finest first.
        num_res_blocks_middle: residual blocks at the coarsest level, after the others.
        norm_type: "layer" or "group".
        use_fp16: run the residual and resampling blocks in float16.
    """

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: Sequence[int],
        num_res_blocks_middle: int = 2,
        norm_type: str = "layer",
        use_fp16: bool = False,
    ) -> None:
        super().__init__()
        width = channels[-1]
        self.input_layer = nn.Conv3d(in_channels, channels[0], 3, padding=1)
        self.blocks = _make_levels(channels, num_res_blocks, norm_type, Downsample3d)
        self.middle_block = nn.Sequential(*(ResBlock3d(width, norm_type) for _ in range(num_res_blocks_middle)))
        self.out_layer = nn.Sequential(
            _make_norm(norm_type, width), nn.SiLU(), nn.Conv3d(width, latent_channels * 2, 3, padding=1)
        )
        self.factor = 2 ** (len(channels) - 1)
        if use_fp16:
            self.convert_to_fp16()

    def forward(
        self, x: Tensor, sample_posterior: bool = False, return_raw: bool = False
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Encode occupancy.

        Args:
            x: `[B, in_channels, R, R, R]` float, 1 where occupied.
            sample_posterior: draw from the distribution (default random generator) instead of returning its mean.
            return_raw: also return mean and log variance.

        Returns:
            The latent `[B, latent_channels, R', R', R']` in the dtype of `x`, or `(latent, mean, log variance)`.

        Raises:
            ValueError: the grid has the wrong shape or cannot be halved often enough.
        """
        self._check_input(x, "occupancy grid")
        if any(size % self.factor for size in x.shape[2:]):
            raise ValueError(f"The grid must be divisible by {self.factor}, got {list(x.shape[2:])}.")
        h = self.input_layer(x).to(self.dtype)
        for block in self.blocks:
            h = block(h)
        h = self.middle_block(h).to(x.dtype)
        mean, logvar = self.out_layer(h).to(x.dtype).chunk(2, dim=1)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean) if sample_posterior else mean
        return (z, mean, logvar) if return_raw else z


class SparseStructureDecoder(_StructureNetwork):
    """Latent to occupancy logits, at `2^(levels - 1)` times the resolution.

    Args:
        out_channels: channels of the logits (1: occupancy).
        latent_channels: channels of the latent.
        num_res_blocks: residual blocks per level.
        channels: width of each level, coarsest first.
        num_res_blocks_middle: residual blocks at the coarsest level, before the others.
        norm_type: "layer" or "group".
        use_fp16: run the residual and resampling blocks in float16.
    """

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: Sequence[int],
        num_res_blocks_middle: int = 2,
        norm_type: str = "layer",
        use_fp16: bool = False,
    ) -> None:
        super().__init__()
        self.input_layer = nn.Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(*(ResBlock3d(channels[0], norm_type) for _ in range(num_res_blocks_middle)))
        self.blocks = _make_levels(channels, num_res_blocks, norm_type, Upsample3d)
        self.out_layer = nn.Sequential(
            _make_norm(norm_type, channels[-1]), nn.SiLU(), nn.Conv3d(channels[-1], out_channels, 3, padding=1)
        )
        if use_fp16:
            self.convert_to_fp16()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, latent_channels, R', R', R'] -> [B, out_channels, R, R, R]` logits, positive where occupied.

        Raises:
            ValueError: the latent has the wrong shape.
        """
        self._check_input(x, "latent")
        h = self.middle_block(self.input_layer(x).to(self.dtype))
        for block in self.blocks:
            h = block(h)
        return self.out_layer(h.to(x.dtype)).to(x.dtype)


def occupied_coords(logits: Tensor, threshold: float = 0.0) -> Tensor:
    """`logits [B, 1, R, R, R] -> [N, 4]` int32 (batch, x, y, z) of the voxels with a logit above the threshold, in
    index order."""
    return torch.argwhere(logits[:, 0] > threshold).int()
