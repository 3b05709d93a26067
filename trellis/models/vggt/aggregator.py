"""The trunk of VGGT: attention within each view and across all views, in turns."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from trellis.errors import InputError
from trellis.models.dinov2 import DinoVisionTransformer
from trellis.modules.rope import grid_rotary_table
from trellis.modules.tables import imagenet_statistics
from trellis.modules.vit import Block, init_linear_layers


class Aggregator(nn.Module):
    """Reads all views of a scene together.

    Each view becomes its patch tokens behind one camera token and some register tokens. The first view, which
    defines the reference frame, has its own version of these special tokens and all others share a second one: the
    order of the views matters.

    Args:
        img_size, patch_size: native square image side and patch side, in pixels; other image sizes work too.
        embed_dim, depth, num_heads, mlp_ratio: sizes of the alternating blocks; `depth` counts (frame, global) pairs.
        num_register_tokens: register tokens per view, here and inside the patch embedding.
        qk_norm: layer norm on queries and keys.
        rope_freq: base of the rotary embedding.
        init_values: initial residual scale per channel.
        patch_embed: `DinoVisionTransformer` arguments that differ from ViT-L/14 at this image size and width.
    """

    def __init__(
        self,
        img_size: int = 518,
        patch_size: int = 14,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_register_tokens: int = 4,
        qk_norm: bool = True,
        rope_freq: float = 100.0,
        init_values: float | None = 0.01,
        patch_embed: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.depth = depth
        self.head_dim = embed_dim // num_heads
        self.rope_freq = rope_freq
        self.patch_start_idx = 1 + num_register_tokens

        # Index 0 of the second axis: the first view; index 1: every other view.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, embed_dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, num_register_tokens, embed_dim))
        self.patch_embed = DinoVisionTransformer(
            **{
                "img_size": img_size,
                "patch_size": patch_size,
                "embed_dim": embed_dim,
                "num_register_tokens": num_register_tokens,
                **(patch_embed or {}),
            }
        )
        if self.patch_embed.embed_dim != embed_dim:
            raise InputError(f"the patch embedding is {self.patch_embed.embed_dim} wide, the aggregator {embed_dim}")

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(
                Block(embed_dim, num_heads, mlp_ratio, qk_norm=qk_norm, init_values=init_values) for _ in range(depth)
            )

        self.frame_blocks = blocks()
        self.global_blocks = blocks()
        init_linear_layers(self.frame_blocks)
        init_linear_layers(self.global_blocks)
        # Large enough for the first view to be told from the others at the first training step.
        nn.init.trunc_normal_(self.camera_token, std=0.02)
        nn.init.trunc_normal_(self.register_token, std=0.02)

    def forward(
        self, images: torch.Tensor, keep: Collection[int] | None = None
    ) -> tuple[list[torch.Tensor | None], int]:
        """Aggregate the views of B scenes.

        Args:
            images: [B, S, 3, H, W], sRGB in [0, 1], H and W multiples of the patch size. Normalisation happens here.
            keep: the layers that will be read; the others are not stored. None keeps all.

        Returns:
            A list with one entry per layer, [B, S, P, 2C] (frame attention output, then global attention output) or
            None where not kept; and the index of the first patch token among the P tokens of a view.

        Raises:
            InputError: wrong image shape, or a layer in `keep` that does not exist.
        """
        if images.ndim != 5 or images.shape[2] != 3:
            raise InputError(f"expected images [B, S, 3, H, W], got {tuple(images.shape)}")
        kept = frozenset(range(self.depth) if keep is None else keep)
        if not kept <= frozenset(range(self.depth)):
            raise InputError(f"cannot keep layers {sorted(kept)}: this aggregator has layers 0 to {self.depth - 1}")
        batch, views, _, height, width = images.shape

        mean, std = imagenet_statistics(images.device)
        normalised = ((images.flatten(0, 1) - mean) / std).to(self.camera_token.dtype)
        patches = self.patch_embed(normalised)["x_norm_patchtokens"]
        special = torch.cat([self.camera_token, self.register_token], dim=2)  # [1, 2, 1 + R, C]
        special = torch.cat([special[:, :1], special[:, 1:].expand(-1, views - 1, -1, -1)], dim=1)
        special = special.expand(batch, -1, -1, -1).flatten(0, 1)
        x = torch.cat([special.to(patches.dtype), patches], dim=1)  # [B*S, P, C]

        rotary = grid_rotary_table(
            height // self.patch_size,
            width // self.patch_size,
            self.patch_start_idx,
            self.head_dim,
            self.rope_freq,
            images.device,
        )

        outputs: list[torch.Tensor | None] = []
        for layer, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            within = frame_block(x, rotary)
            across = global_block(within.unflatten(0, (batch, views)).flatten(1, 2), rotary)
            x = across.unflatten(1, (views, -1)).flatten(0, 1)
            outputs.append(torch.cat([within, x], dim=-1).unflatten(0, (batch, views)) if layer in kept else None)
        return outputs, self.patch_start_idx
