"""Encoder of the structured latent: per-voxel image features to a per-voxel Gaussian."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...modules.sparse import SparseTensor
from ...modules.transformer import zero_init
from .base import SparseTransformerBase


class SLatEncoder(SparseTransformerBase):
    """Maps features of active voxels to the mean and log-variance of their latent.

    Args:
        resolution: edge of the voxel grid.
        in_channels: width of the voxel features.
        model_channels: width of the transformer.
        latent_channels: width of the latent.
        num_blocks: transformer blocks.
        use_fp16: run the torso in float16; input and output stay float32.
        **trunk: the other arguments of `SparseTransformerBase`.
    """

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        use_fp16: bool = False,
        **trunk,
    ) -> None:
        super().__init__(in_channels, model_channels, num_blocks, num_heads, **trunk)
        self.resolution, self.latent_channels = resolution, latent_channels
        self.out_layer = nn.Linear(model_channels, 2 * latent_channels)
        zero_init(self.out_layer)
        if use_fp16:
            self.convert_to_fp16()

    def forward(
        self,
        x: SparseTensor,
        sample_posterior: bool = True,
        return_raw: bool = False,
        generator: torch.Generator | None = None,
    ) -> SparseTensor | tuple[SparseTensor, Tensor, Tensor]:
        """Encode voxel features ``[N, in_channels]``.

        Args:
            x: voxel features.
            sample_posterior: draw the latent from its Gaussian instead of returning the mean.
            return_raw: also return mean and log-variance, ``[N, latent_channels]`` each.
            generator: source of the noise, on the device of `x`.

        Returns:
            The latent ``[N, latent_channels]``, or (latent, mean, logvar).
        """
        h = self.encode_voxels(x).type(x.dtype)
        h = F.layer_norm(h.feats, h.feats.shape[-1:])
        mean, logvar = self.out_layer(h).to(x.dtype).chunk(2, dim=1)
        latent = mean
        if sample_posterior:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            latent = mean + torch.exp(0.5 * logvar) * noise
        z = x.replace(latent)
        return (z, mean, logvar) if return_raw else z
