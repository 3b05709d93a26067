"""DINOv2 vision transformer with register tokens (Oquab et al., arXiv:2304.07193; Darcet et al., arXiv:2309.16588).

Serves twice: as the image encoder of the conditioners and as the patch embedding inside VGGT.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from trellis.errors import InputError
from trellis.modules.vit import Block, init_linear_layers


class PatchEmbed(nn.Module):
    """Cut an image into square patches and project each to one token."""

    def __init__(self, patch_size: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images [N, 3, H, W] -> [N, H/p * W/p, C], row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class DinoVisionTransformer(nn.Module):
    """A ViT over square patches with a class token and register tokens; defaults are ViT-L/14 with 4 registers.

    Args:
        img_size: side in pixels of the square image that the stored position table fits. Other sizes resample it.
        patch_size: side of a patch in pixels.
        embed_dim, depth, num_heads, mlp_ratio, qkv_bias: the usual transformer sizes.
        init_values: initial residual scale per channel; None for a network without such scales.
        ffn_layer, block_chunks, interpolate_offset: named in published configurations; only the values of the register
            checkpoints ("mlp", 0, 0.0) exist here.
        num_register_tokens: tokens after the class token that carry no position.
        interpolate_antialias: low-pass the position table when it is resampled to a smaller grid.

    `mask_token` belongs to the checkpoints but is read in masked pre-training only, so it is frozen.
    """

    def __init__(
        self,
        img_size: int = 518,
        patch_size: int = 14,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = 1.0,
        ffn_layer: str = "mlp",
        block_chunks: int = 0,
        num_register_tokens: int = 4,
        interpolate_antialias: bool = True,
        interpolate_offset: float = 0.0,
    ):
        super().__init__()
        if (ffn_layer, block_chunks, interpolate_offset) != ("mlp", 0, 0.0):
            raise InputError(
                "only ffn_layer='mlp', block_chunks=0 and interpolate_offset=0.0 are supported, "
                f"got {ffn_layer!r}, {block_chunks} and {interpolate_offset}"
            )
        if img_size % patch_size:
            raise InputError(f"img_size {img_size} is not a multiple of patch_size {patch_size}")
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.num_register_tokens = num_register_tokens
        self.interpolate_antialias = interpolate_antialias

        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (img_size // patch_size) ** 2, embed_dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, num_register_tokens, embed_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim), requires_grad=False)
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, init_values=init_values, norm_eps=1e-6)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)

        init_linear_layers(self)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.normal_(self.register_tokens, std=1e-6)

    def position_table(self, rows: int, columns: int) -> torch.Tensor:
        """The position table for a grid of patches: [1, 1 + rows * columns, C], class token first.

        The grid it was trained on is returned as stored; any other is resampled bicubically in float32.
        """
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=self.interpolate_antialias)
        grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(self.pos_embed.dtype)
        return torch.cat([self.pos_embed[:, :1], grid], dim=1)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] -> the tokens that enter the first block, [N, 1 + registers + patches, C]."""
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % self.patch_size or x.shape[3] % self.patch_size:
            raise InputError(
                f"expected images [N, 3, H, W] with sides that are multiples of {self.patch_size} pixels, "
                f"got {tuple(x.shape)}"
            )
        table = self.position_table(x.shape[2] // self.patch_size, x.shape[3] // self.patch_size)
        patches = self.patch_embed(x) + table[:, 1:]
        heads = torch.cat([self.cls_token + table[:, :1], self.register_tokens], dim=1)
        return torch.cat([heads.expand(len(x), -1, -1), patches], dim=1)

    def forward_features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode images [N, 3, H, W], already normalised with the ImageNet statistics.

        Returns:
            x_prenorm [N, 1 + R + P, C], the residual stream before the final norm: class token, R registers, P patches
            row by row. After that norm: x_norm_clstoken [N, C], x_norm_regtokens [N, R, C] and
            x_norm_patchtokens [N, P, C].

        Raises:
            InputError: wrong shape, or sides that are not multiples of the patch size.
        """
        tokens = self.embed(x)
        for block in self.blocks:
            tokens = block(tokens)
        normed = self.norm(tokens)
        first_patch = 1 + self.num_register_tokens
        return {
            "x_prenorm": tokens,
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1:first_patch],
            "x_norm_patchtokens": normed[:, first_patch:],
        }

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same as `forward_features`."""
        return self.forward_features(x)
