"""The flow transformer of the sparse structure: a dense latent grid, denoised under the tokens of the views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules.attention import CondCache, Condition, condition_elements
from ..modules.embedding import AbsolutePositionEmbedder, TimestepEmbedder
from ..modules.spatial import patchify, unpatchify
from ..modules.transformer import ModulatedTransformerCrossBlock, make_modulation
from .flow_base import FlowTransformer


class SparseStructureFlowModel(FlowTransformer):
    """Predicts the velocity of the structure latent.

    A diffusion transformer (Peebles and Xie 2023, arXiv:2212.09748) of a rectified flow (Liu et al. 2022,
    arXiv:2209.03003), as in TRELLIS (Xiang et al. 2024, arXiv:2412.01506).

    Args:
        resolution: side R of the latent grid.
        in_channels: channels of the latent.
        model_channels: width of the transformer.
        cond_channels: width of the condition tokens.
        out_channels: channels of the velocity.
        num_blocks: depth.
        num_heads: attention heads; by default `model_channels / num_head_channels`.
        num_head_channels: width of a head when `num_heads` is None.
        mlp_ratio: hidden width of the feed-forward parts divided by `model_channels`.
        patch_size: side p of the cube of voxels that makes one token; p divides R.
        pe_mode: position encoding; "ape" (absolute, sinusoidal) is the only one.
        use_fp16: run the blocks in float16.
        use_checkpoint: recompute activations of the blocks in the backward pass.
        share_mod: one time modulation for all blocks instead of one each.
        qk_rms_norm: normalise queries and keys of the self-attentions.
        qk_rms_norm_cross: normalise queries and keys of the cross-attentions.
    """

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        cond_channels: int,
        out_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int = 64,
        mlp_ratio: float = 4,
        patch_size: int = 2,
        pe_mode: str = "ape",
        use_fp16: bool = False,
        use_checkpoint: bool = False,
        share_mod: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
    ) -> None:
        super().__init__()
        if pe_mode != "ape":
            raise ValueError(f"pe_mode must be 'ape', got {pe_mode!r}.")
        if resolution % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide resolution {resolution}.")
        self.resolution = resolution
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.cond_channels = cond_channels
        self.patch_size = patch_size
        self.share_mod = share_mod

        self.t_embedder = TimestepEmbedder(model_channels)
        if share_mod:
            self.adaLN_modulation = make_modulation(model_channels)

        axis = torch.arange(resolution // patch_size)
        coords = torch.cartesian_prod(axis, axis, axis)  # x slowest, z fastest
        self.register_buffer("pos_emb", AbsolutePositionEmbedder(model_channels)(coords))

        self.input_layer = nn.Linear(in_channels * patch_size**3, model_channels)
        self.blocks = nn.ModuleList(
            ModulatedTransformerCrossBlock(
                model_channels,
                cond_channels,
                num_heads or model_channels // num_head_channels,
                mlp_ratio=mlp_ratio,
                qk_rms_norm=qk_rms_norm,
                qk_rms_norm_cross=qk_rms_norm_cross,
                use_checkpoint=use_checkpoint,
                share_mod=share_mod,
            )
            for _ in range(num_blocks)
        )
        self.out_layer = nn.Linear(model_channels, out_channels * patch_size**3)

        self.initialize_weights()
        if use_fp16:
            self.convert_to_fp16()

    def torso(self) -> list[nn.Module]:
        """The transformer blocks."""
        return [self.blocks]

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Velocity at `x`.

        Args:
            x: `[B, in_channels, R, R, R]`, the noisy latent.
            t: `[B]`, time times 1000: 1000 is noise, 0 is data.
            cond: tokens `[B, L, cond_channels]`, `ZeroCondition(B)`, a list of these, or a `CondCache`. On a list the
                stack of blocks runs once per element, in order, on the running state.

        Returns:
            `[B, out_channels, R, R, R]` in the dtype of `x`.

        Raises:
            ValueError: `x` has another shape than the constructor promised.
        """
        expected = (self.in_channels, *(self.resolution,) * 3)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"The latent must be [B, {', '.join(map(str, expected))}], got {list(x.shape)}.")

        h = patchify(x, self.patch_size).flatten(2).transpose(1, 2)  # [B, tokens, C * p^3]
        h = self.input_layer(h) + self.pos_emb
        mod = self.t_embedder(t)
        if self.share_mod:
            mod = self.adaLN_modulation(mod)
        h, mod = h.to(self.dtype), mod.to(self.dtype)

        for contexts in self._passes(cond):
            for block, context in zip(self.blocks, contexts, strict=True):
                h = block(h, mod, context)

        h = h.to(x.dtype)
        h = self.out_layer(F.layer_norm(h, h.shape[-1:])).to(x.dtype)
        side = self.resolution // self.patch_size
        return unpatchify(h.transpose(1, 2).unflatten(2, (side,) * 3), self.patch_size)

    def _passes(self, cond: Condition) -> Sequence[Sequence]:
        """Contexts as [element of the condition list][block]."""
        if isinstance(cond, CondCache):
            return list(zip(*self.precompute_condition(cond).layers, strict=True))
        # Not cached here: a block under activation checkpointing should recompute its keys and values.
        return [[element] * len(self.blocks) for element in condition_elements(cond, self.dtype)]
