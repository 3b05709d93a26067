"""From the tokens of the views to the conditions of the two flows (ReconViaGen, arXiv:2510.23306)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..modules.precision import MixedPrecisionModel
from ..modules.transformer import TransformerCrossBlock, init_linear_layers

AGGREGATOR_LEVELS = (4, 11, 17, 23)


def _select_levels(tokens: Sequence[Tensor | None], levels: Sequence[int]) -> list[Tensor]:
    """The entries of the aggregator's list that a conditioner reads."""
    for level in levels:
        if level >= len(tokens) or tokens[level] is None:
            raise ValueError(f"Aggregator level {level} is needed but was not kept.")
    return [tokens[level] for level in levels]


class ModulatedMultiViewCond(MixedPrecisionModel):
    """One condition for the structure flow from any number of views.

    Learned tokens attend to themselves and, block by block, to the patch tokens of all views at one aggregator level.

    Args:
        channels: width of the condition.
        ctx_channels: width of an aggregator token plus that of an image token.
        num_heads: attention heads.
        mlp_ratio: hidden width of the feed-forward parts divided by `channels`.
        attn_mode: "full" is the only one.
        use_checkpoint: recompute activations of the blocks in the backward pass.
        use_rope: must be False; learned tokens have no positions to rotate by.
        share_mod: accepted for compatibility with published configurations; these blocks have no modulation.
        qk_rms_norm: normalise queries and keys of the self-attentions.
        qk_rms_norm_cross: normalise queries and keys of the cross-attentions.
        num_init_tokens: length of the condition.
        levels: entries of the aggregator's list, one block each.
        num_special_tokens: camera and register tokens at the head of each view's aggregator tokens, dropped here.
        use_fp16: run in float16.
    """

    def __init__(
        self,
        channels: int,
        ctx_channels: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        attn_mode: str = "full",
        use_checkpoint: bool = False,
        use_rope: bool = False,
        share_mod: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        num_init_tokens: int = 4096,
        levels: Sequence[int] = AGGREGATOR_LEVELS,
        num_special_tokens: int = 5,
        use_fp16: bool = False,
    ) -> None:
        super().__init__()
        if attn_mode != "full" or use_rope:
            raise ValueError(f"Only attn_mode 'full' without rope exists, got {attn_mode!r}, use_rope={use_rope}.")
        self.ctx_channels = ctx_channels
        self.levels = tuple(levels)
        self.num_special_tokens = num_special_tokens
        # Unit variance: tokens must stay distinct next to what the blocks add to all of them.
        self.multiview_cond_tokens = nn.Parameter(torch.randn(1, num_init_tokens, channels))
        self.cond_blocks = nn.ModuleList(
            TransformerCrossBlock(
                channels,
                ctx_channels,
                num_heads,
                mlp_ratio=mlp_ratio,
                qk_rms_norm=qk_rms_norm,
                qk_rms_norm_cross=qk_rms_norm_cross,
                use_checkpoint=use_checkpoint,
            )
            for _ in self.levels
        )
        init_linear_layers(self)
        if use_fp16:
            self.convert_to_fp16()

    def torso(self) -> list[nn.Module]:
        """All of it, the learned tokens included."""
        return [self]

    def forward(self, aggregated_tokens_list: Sequence[Tensor | None], image_cond: Tensor) -> Tensor:
        """Gather the views into one sequence.

        Args:
            aggregated_tokens_list: per aggregator level `[B, n, special + P, C_agg]`; unread levels may be None.
            image_cond: `[B, n, P, C_image]`, patch tokens of the image encoder, without its special tokens.

        Returns:
            `[B, num_init_tokens, channels]` in the precision of the module.

        Raises:
            ValueError: a level is missing, or the tokens do not fit together.
        """
        image_cond = image_cond.to(self.dtype)
        h = self.multiview_cond_tokens.expand(image_cond.shape[0], -1, -1)
        levels = _select_levels(aggregated_tokens_list, self.levels)
        for block, tokens in zip(self.cond_blocks, levels, strict=True):
            patches = tokens[:, :, self.num_special_tokens :].to(self.dtype)
            if patches.shape[:3] != image_cond.shape[:3]:
                raise ValueError(
                    f"Aggregator patch tokens {list(patches.shape[:3])} and image tokens {list(image_cond.shape[:3])} "
                    "must agree in [batch, views, patches]."
                )
            h = block(h, torch.cat([patches, image_cond], dim=-1).flatten(1, 2))  # all views in one context
        return h


class ModulatedSLATMultiViewCond(MixedPrecisionModel):
    """One condition per view for the latent flow: each token is refined on its own, aggregator level by level.

    Args:
        channels: width of the condition and of the image tokens.
        ctx_channels: width of an aggregator token plus that of an image token.
        levels: entries of the aggregator's list, one layer each.
        use_fp16: run in float16.
    """

    def __init__(
        self,
        channels: int,
        ctx_channels: int,
        levels: Sequence[int] = AGGREGATOR_LEVELS,
        use_fp16: bool = False,
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.linear_blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(ctx_channels, channels), nn.ReLU()) for _ in self.levels
        )
        init_linear_layers(self)
        if use_fp16:
            self.convert_to_fp16()

    def torso(self) -> list[nn.Module]:
        """All of it."""
        return [self]

    def forward(self, aggregated_tokens_list: Sequence[Tensor | None], image_cond: Tensor) -> list[Tensor]:
        """Refine the image tokens of each view.

        Args:
            aggregated_tokens_list: per aggregator level `[B, n, P, C_agg]`, all tokens; unread levels may be None.
            image_cond: `[B, n, P, channels]`, all tokens of the image encoder.

        Returns:
            `n` tensors `[B, P, channels]` in the precision of the module.

        Raises:
            ValueError: a level is missing, or the tokens do not fit together.
        """
        image_cond = image_cond.to(self.dtype)
        h = image_cond
        levels = _select_levels(aggregated_tokens_list, self.levels)
        for block, tokens in zip(self.linear_blocks, levels, strict=True):
            if tokens.shape[:3] != image_cond.shape[:3]:
                raise ValueError(
                    f"Aggregator tokens {list(tokens.shape[:3])} and image tokens {list(image_cond.shape[:3])} "
                    "must agree in [batch, views, tokens]."
                )
            h = block(torch.cat([tokens.to(self.dtype), h], dim=-1)) + image_cond
        return list(h.unbind(1))
