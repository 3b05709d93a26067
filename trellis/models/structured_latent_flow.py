"""The velocity network of the structured latent: a sparse U-shaped transformer conditioned on views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules.attention import CondCache, Condition, condition_elements
from ..modules.embedding import AbsolutePositionEmbedder, TimestepEmbedder
from ..modules.sparse import Sites, SparseTensor
from ..modules.sparse.transformer import ModulatedSparseTransformerCrossBlock, SparseResBlock3d
from ..modules.transformer import make_modulation
from .flow_base import FlowTransformer


class SLatFlowModel(FlowTransformer):
    """Predicts the velocity of a rectified flow on the features of active voxels (TRELLIS, arXiv:2412.01506).

    Convolutional blocks reduce the grid by `patch_size`, transformer blocks run on the coarse grid, and mirrored
    convolutional blocks with skip connections return to the original voxels.

    Args:
        resolution: edge of the voxel grid.
        in_channels: width of the latent.
        model_channels: width of the transformer.
        cond_channels: width of the condition tokens.
        out_channels: width of the velocity.
        num_blocks: transformer blocks.
        num_heads: attention heads; by default ``model_channels // num_head_channels``.
        num_head_channels: channels of a head when `num_heads` is not given.
        mlp_ratio: hidden width of the feed-forward layers over `model_channels`.
        patch_size: 2 to the number of levels in `io_block_channels`.
        num_io_res_blocks: residual blocks of each level, on either side.
        io_block_channels: width of each level, finest first; none when `patch_size` is 1.
        pe_mode: "ape" (absolute position embedding) is the only mode.
        use_fp16: run blocks in float16; input, output and time embedding stay float32.
        use_checkpoint: recompute activations of the transformer blocks in the backward pass.
        use_skip_connection: feed each output block the result of its input block.
        share_mod: one modulation layer for all transformer blocks.
        qk_rms_norm, qk_rms_norm_cross: RMS-normalise queries and keys in self- and cross-attention.
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
        num_io_res_blocks: int = 2,
        io_block_channels: Sequence[int] | None = None,
        pe_mode: str = "ape",
        use_fp16: bool = False,
        use_checkpoint: bool = False,
        use_skip_connection: bool = True,
        share_mod: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
    ) -> None:
        super().__init__()
        levels = list(io_block_channels or [])
        if patch_size != 2 ** len(levels):
            raise ValueError(f"{len(levels)} io_block_channels need patch_size {2 ** len(levels)}, got {patch_size}.")
        if pe_mode != "ape":
            raise ValueError(f"pe_mode must be 'ape', got {pe_mode!r}.")
        self.resolution = resolution
        self.in_channels, self.out_channels = in_channels, out_channels
        self.model_channels, self.cond_channels = model_channels, cond_channels
        self.use_skip_connection, self.share_mod = use_skip_connection, share_mod

        self.t_embedder = TimestepEmbedder(model_channels)
        if share_mod:
            self.adaLN_modulation = make_modulation(model_channels)
        widths = [*levels, model_channels]
        self.input_layer = nn.Linear(in_channels, widths[0])
        self.input_blocks = nn.ModuleList()
        for width, coarser in zip(widths, widths[1:], strict=False):
            self.input_blocks.extend(SparseResBlock3d(width, model_channels) for _ in range(num_io_res_blocks - 1))
            self.input_blocks.append(SparseResBlock3d(width, model_channels, coarser, downsample=True))
        self.pos_embedder = AbsolutePositionEmbedder(model_channels)
        self.blocks = nn.ModuleList(
            ModulatedSparseTransformerCrossBlock(
                model_channels,
                cond_channels,
                num_heads or model_channels // num_head_channels,
                mlp_ratio,
                qk_rms_norm=qk_rms_norm,
                qk_rms_norm_cross=qk_rms_norm_cross,
                use_checkpoint=use_checkpoint,
                share_mod=share_mod,
            )
            for _ in range(num_blocks)
        )
        fed = 2 if use_skip_connection else 1  # widths of the block's input and of the skip are equal
        self.out_blocks = nn.ModuleList()
        for width, coarser in zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True):
            self.out_blocks.append(SparseResBlock3d(fed * coarser, model_channels, width, upsample=True))
            self.out_blocks.extend(
                SparseResBlock3d(fed * width, model_channels, width) for _ in range(num_io_res_blocks - 1)
            )
        self.out_layer = nn.Linear(widths[0], out_channels)

        self.initialize_weights()
        if use_fp16:
            self.convert_to_fp16()

    def torso(self) -> list[nn.Module]:
        """Everything between the input and the output layer, without the time embedding."""
        return [self.input_blocks, self.blocks, self.out_blocks]

    def _positions(self, sites: Sites) -> Tensor:
        """Embedded positions of the coarse voxels, kept with them over all steps of a generation."""
        return sites.cached(("positions", self.model_channels), lambda: self.pos_embedder(sites.coords[:, 1:]))

    def _contexts(self, cond: Condition) -> Sequence[Sequence]:
        """Contexts as [block][view]."""
        if isinstance(cond, CondCache):
            return self.precompute_condition(cond).layers
        # Not cached here: a block under activation checkpointing should recompute its keys and values.
        return [condition_elements(cond, self.dtype)] * len(self.blocks)

    def forward(self, x: SparseTensor, t: Tensor, cond: Condition) -> SparseTensor:
        """Velocity at time `t`.

        Args:
            x: latent, features ``[N, in_channels]``.
            t: ``[B]``, time times 1000: 1000 is noise, 0 is data.
            cond: tokens ``[B, M, cond_channels]``, `ZeroCondition(B)`, a list of these, or a `CondCache`. The elements
                of a list (one for each view) are averaged in each cross-attention.

        Returns:
            Features ``[N, out_channels]`` in the dtype of `x`.
        """
        h = x.replace(self.input_layer(x.feats)).type(self.dtype)
        emb = self.t_embedder(t)
        mod = (self.adaLN_modulation(emb) if self.share_mod else emb).to(self.dtype)
        emb = emb.to(self.dtype)

        skips, finer = [], []
        for block in self.input_blocks:
            if block.downsample:
                finer.append(h.sites)
            h = block(h, emb)
            skips.append(h.feats)
        h = h.type(self.dtype)  # autocast leaves a convolution's bfloat16 here; the residual stream keeps its precision
        h = h.replace(h.feats + self._positions(h.sites).to(h.dtype))
        for block, contexts in zip(self.blocks, self._contexts(cond), strict=True):
            h = block(h, mod, contexts)
        for block in self.out_blocks:
            if self.use_skip_connection:
                h = h.replace(torch.cat([h.feats, skips.pop()], dim=1))
            h = block(h, emb, finer.pop() if block.upsample else None)
        # The published weights expect this norm in the precision of the blocks, unlike every other norm.
        h = h.replace(F.layer_norm(h.feats, h.feats.shape[-1:])).type(x.dtype)
        return h.replace(self.out_layer(h.feats)).type(x.dtype)
