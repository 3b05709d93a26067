"""The whole of VGGT that reconstruction needs: aggregator, camera head, point head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from trellis.errors import InputError
from trellis.models.vggt.aggregator import Aggregator
from trellis.models.vggt.camera_head import CameraHead
from trellis.models.vggt.dpt_head import DPTHead


class VGGT(nn.Module):
    """Visual geometry grounded transformer; the defaults are the published network.

    Args:
        img_size, patch_size, embed_dim, depth, num_heads, mlp_ratio, num_register_tokens: see `Aggregator`.
        init_values: initial residual scale of the aggregator blocks.
        patch_embed: what differs in the inner vision transformer from ViT-L/14 at this size and width.
        camera_head, point_head: arguments of `CameraHead` and `DPTHead` that differ from their defaults.
        intermediate_layers: the four aggregator layers that the point head and the conditioners read.

    Published files also hold a depth head and a track head, which nothing here uses; a loader drops their keys
    (`UNUSED_PREFIXES`).
    """

    UNUSED_PREFIXES = ("depth_head.", "track_head.")

    def __init__(
        self,
        img_size: int = 518,
        patch_size: int = 14,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_register_tokens: int = 4,
        patch_embed: dict[str, Any] | None = None,
        camera_head: dict[str, Any] | None = None,
        point_head: dict[str, Any] | None = None,
        intermediate_layers: Sequence[int] = (4, 11, 17, 23),
        init_values: float | None = 0.01,
    ):
        super().__init__()
        self.intermediate_layers = tuple(intermediate_layers)
        if not all(0 <= layer < depth for layer in self.intermediate_layers):
            raise InputError(f"intermediate_layers {self.intermediate_layers} must lie in 0 to {depth - 1}")
        self.aggregator = Aggregator(
            img_size,
            patch_size,
            embed_dim,
            depth,
            num_heads,
            mlp_ratio,
            num_register_tokens,
            init_values=init_values,
            patch_embed=patch_embed,
        )
        self.camera_head = CameraHead(2 * embed_dim, **(camera_head or {}))
        self.point_head = DPTHead(
            2 * embed_dim, patch_size, intermediate_layer_idx=self.intermediate_layers, **(point_head or {})
        )

    @property
    def device(self) -> torch.device:
        return self.aggregator.camera_token.device

    @property
    def dtype(self) -> torch.dtype:
        return self.aggregator.camera_token.dtype

    def forward(self, images: torch.Tensor, keep: Collection[int] | None = None) -> dict[str, Any]:
        """Cameras and points of every view.

        Args:
            images: [B, S, 3, H, W], sRGB in [0, 1], H and W multiples of the patch size.
            keep: aggregator layers whose tokens the caller wants too; they come back under "tokens".

        Returns:
            pose_enc [B, S, 9] (see `pose_encoding`), pose_enc_list (one per refinement round, for training),
            points [B, S, H, W, 3] and points_conf [B, S, H, W] in the frame of the first view; with `keep`, tokens, the
            list of the aggregator with None where a layer was neither asked for nor read by a head.

        The heads always run in the type of the weights: points grow exponentially in the last layer, which autocast's
        half types are too coarse for.
        """
        read = {*self.intermediate_layers, self.aggregator.depth - 1}
        tokens, patch_start_idx = self.aggregator(images, keep=read.union(keep or ()))
        with torch.autocast(images.device.type, enabled=False):
            levels = [None if level is None else level.to(self.dtype) for level in tokens]
            poses = self.camera_head(levels)
            # With gradients every activation is kept anyway, so working through the views in chunks would save nothing.
            chunk = None if torch.is_grad_enabled() else 8
            points, confidence = self.point_head(levels, images, patch_start_idx, frames_chunk_size=chunk)
        outputs = {"pose_enc": poses[-1], "pose_enc_list": poses, "points": points, "points_conf": confidence}
        return outputs if keep is None else {**outputs, "tokens": tokens}
