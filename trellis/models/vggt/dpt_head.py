"""Dense prediction head of VGGT (Ranftl et al., arXiv:2103.13413): token levels in, points and confidences out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from trellis.errors import InputError
from trellis.modules.tables import cached_table

POSITION_WEIGHT = 0.1


def uv_axes(
    height: int, width: int, aspect: float, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates of pixel centres on a plane with a diagonal of length 2 and sides as `aspect` = width / height.

    Returns:
        u [width] and v [height], float32, centred on zero.
    """
    diagonal = (aspect**2 + 1.0) ** 0.5
    u_end = aspect / diagonal * (width - 1) / width
    v_end = 1.0 / diagonal * (height - 1) / height
    return (
        torch.linspace(-u_end, u_end, width, device=device),
        torch.linspace(-v_end, v_end, height, device=device),
    )


@cached_table
def position_terms(
    height: int, width: int, channels: int, aspect: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sine-cosine embedding of `uv_axes`: [channels / 2, 1, width] for u, [channels / 2, height, 1] for v.

    Sines come before cosines, at frequencies 100 ** (-k / (channels / 4)). The two halves stay apart because each
    depends on one axis only: the full table of the last layer would take over a hundred megabytes.
    """
    count = channels // 4
    # The frequencies are exact to float32 only if raised to the power in float64 (not to be had on every device).
    exponent = torch.arange(count, dtype=torch.float64) / count
    frequencies = (100.0**-exponent).float().to(device)

    def embed(axis: torch.Tensor) -> torch.Tensor:
        angles = frequencies[:, None] * axis
        return torch.cat([angles.sin(), angles.cos()])

    u, v = uv_axes(height, width, aspect, device)
    return embed(u)[:, None, :], embed(v)[:, :, None]


def add_positions(x: torch.Tensor, aspect: float) -> torch.Tensor:
    """x [N, C, h, w] plus a tenth of its position embedding: u in the first half of the channels, v in the second."""
    channels, height, width = x.shape[1:]
    u, v = position_terms(height, width, channels, aspect, x.device)
    first, second = x.chunk(2, dim=1)
    return torch.cat([first + (POSITION_WEIGHT * u).to(x.dtype), second + (POSITION_WEIGHT * v).to(x.dtype)], dim=1)


def resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class ResidualConvUnit(nn.Module):
    """relu(x) + conv(relu(conv(relu(x)))). The skip path carries relu(x), not x: the published weights expect it."""

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        return x + self.conv2(F.relu(self.conv1(x)))


class FeatureFusionBlock(nn.Module):
    """Adds a finer level to the running features, refines and enlarges them."""

    def __init__(self, features: int, has_residual: bool = True):
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        if has_residual:
            self.resConfUnit1 = ResidualConvUnit(features)
        self.resConfUnit2 = ResidualConvUnit(features)

    def forward(self, x: torch.Tensor, level: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        """x, level [N, F, h, w] -> [N, F, *size]."""
        if level is not None:
            x = x + self.resConfUnit1(level)
        # A 1x1 convolution commutes with bilinear resizing (weights that sum to one); first, it is four times cheaper.
        return resize(self.out_conv(self.resConfUnit2(x)), size)


class Scratch(nn.Module):
    """The convolutions that work at one common width; the name is that of the checkpoint keys."""

    def __init__(self, features: int, out_channels: Sequence[int], output_dim: int):
        super().__init__()
        self.layer1_rn = nn.Conv2d(out_channels[0], features, 3, padding=1, bias=False)
        self.layer2_rn = nn.Conv2d(out_channels[1], features, 3, padding=1, bias=False)
        self.layer3_rn = nn.Conv2d(out_channels[2], features, 3, padding=1, bias=False)
        self.layer4_rn = nn.Conv2d(out_channels[3], features, 3, padding=1, bias=False)
        self.refinenet1 = FeatureFusionBlock(features)
        self.refinenet2 = FeatureFusionBlock(features)
        self.refinenet3 = FeatureFusionBlock(features)
        self.refinenet4 = FeatureFusionBlock(features, has_residual=False)
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, output_dim, 1)
        )

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Levels from fine to coarse (h, h/2, h/4, h/8) -> [N, F/2, 2h, 2w]."""
        level1, level2, level3, level4 = (
            conv(level)
            for conv, level in zip(
                (self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn), levels, strict=True
            )
        )
        x = self.refinenet4(level4, None, level3.shape[-2:])
        x = self.refinenet3(x, level3, level2.shape[-2:])
        x = self.refinenet2(x, level2, level1.shape[-2:])
        x = self.refinenet1(x, level1, (2 * level1.shape[-2], 2 * level1.shape[-1]))
        return self.output_conv1(x)


class DPTHead(nn.Module):
    """Point map and confidence of every view, in the frame of the first view.

    Args:
        dim_in: width of the aggregator entries.
        patch_size: side of a patch in pixels.
        output_dim: channels of the last layer; the last one is the confidence.
        features: common width of the fusion stages, a multiple of 8.
        out_channels: width of each level before fusion, multiples of 4.
        intermediate_layer_idx: the four aggregator entries to read, shallow to deep.
    """

    def __init__(
        self,
        dim_in: int = 2048,
        patch_size: int = 14,
        output_dim: int = 4,
        features: int = 256,
        out_channels: Sequence[int] = (256, 512, 1024, 1024),
        intermediate_layer_idx: Sequence[int] = (4, 11, 17, 23),
    ):
        super().__init__()
        if len(out_channels) != 4 or len(intermediate_layer_idx) != 4:
            raise InputError("the dense head reads exactly four levels: give four out_channels and four layers")
        if features % 8 or any(channels % 4 for channels in out_channels):
            raise InputError(f"features ({features}) must be a multiple of 8 and out_channels ({out_channels}) of 4")
        self.patch_size = patch_size
        self.intermediate_layer_idx = tuple(intermediate_layer_idx)
        self.norm = nn.LayerNorm(dim_in)
        self.projects = nn.ModuleList(nn.Conv2d(dim_in, channels, 1) for channels in out_channels)
        # Four scales from one token grid: 4x, 2x, 1x, 1/2x.
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(out_channels[0], out_channels[0], 4, stride=4),
                nn.ConvTranspose2d(out_channels[1], out_channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(out_channels[3], out_channels[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(features, out_channels, output_dim)

    def forward(
        self,
        aggregated_tokens: Sequence[torch.Tensor | None],
        images: torch.Tensor,
        patch_start_idx: int,
        frames_chunk_size: int | None = 8,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the surface seen in every pixel.

        Args:
            aggregated_tokens: aggregator entries [B, S, P, dim_in]; only those of `intermediate_layer_idx` are read.
            images: [B, S, 3, H, W]; only the size is read.
            patch_start_idx: number of special tokens before the patches of a view.
            frames_chunk_size: views processed at once, to bound memory; None for all. The result does not depend on it.

        Returns:
            points [B, S, H, W, 3] and confidence [B, S, H, W], the latter above 1.
        """
        batch, views, _, height, width = images.shape
        levels = [
            aggregated_tokens[layer][:, :, patch_start_idx:].flatten(0, 1) for layer in self.intermediate_layer_idx
        ]
        chunk = batch * views if frames_chunk_size is None else frames_chunk_size
        raw = torch.cat(
            [
                self._raw_prediction([level[start : start + chunk] for level in levels], height, width)
                for start in range(0, batch * views, chunk)
            ]
        )
        raw = raw.permute(0, 2, 3, 1).unflatten(0, (batch, views))
        logarithm, confidence = raw[..., :-1], raw[..., -1]
        return torch.sign(logarithm) * torch.expm1(logarithm.abs()), 1 + confidence.exp()

    def _raw_prediction(self, levels: Sequence[torch.Tensor], height: int, width: int) -> torch.Tensor:
        """Patch tokens [N, P, C] of four layers -> [N, output_dim, height, width] before the output activations."""
        rows, columns = height // self.patch_size, width // self.patch_size
        aspect = width / height
        maps = []
        for level, project, rescale in zip(levels, self.projects, self.resize_layers, strict=True):
            grid = self.norm(level).transpose(1, 2).unflatten(2, (rows, columns))
            maps.append(rescale(add_positions(project(grid), aspect)))
        fused = resize(self.scratch(maps), (height, width))
        return self.scratch.output_conv2(add_positions(fused, aspect))
