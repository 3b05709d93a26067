"""Camera head of VGGT: refines one pose encoding per view in a few rounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from trellis.modules.vit import Block, Mlp, init_linear_layers

POSE_DIM = 9  # translation 3, quaternion x, y, z, w 4, field of view (vertical, horizontal) 2


class CameraHead(nn.Module):
    """Predicts pose encodings (see `pose_encoding`) from the camera token of each view.

    Every round conditions the camera tokens on the encoding found so far (adaptive layer norm with a gate, as in DiT),
    lets the views attend to each other and adds a correction. The encoding that is fed back is the raw sum, before the
    field of view is made non-negative, and carries no gradient: each round learns from its own correction.

    Args:
        dim_in: width of the aggregator entries (twice its own width).
        trunk_depth, num_heads, mlp_ratio: sizes of the transformer that runs once per round.
        init_values: initial residual scale per channel.
    """

    def __init__(
        self,
        dim_in: int = 2048,
        trunk_depth: int = 4,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        init_values: float | None = 0.01,
    ):
        super().__init__()
        self.trunk = nn.ModuleList(
            Block(dim_in, num_heads, mlp_ratio, init_values=init_values) for _ in range(trunk_depth)
        )
        self.token_norm = nn.LayerNorm(dim_in)
        self.trunk_norm = nn.LayerNorm(dim_in)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_DIM))
        self.embed_pose = nn.Linear(POSE_DIM, dim_in)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim_in, 3 * dim_in))
        self.pose_branch = Mlp(dim_in, dim_in // 2, POSE_DIM)
        init_linear_layers(self)
        # An untrained head should say "no rotation, 46 degrees" after its four rounds: a zero quaternion has no
        # direction, and a negative field of view has no gradient.
        with torch.no_grad():
            self.pose_branch.fc2.bias.copy_(torch.tensor([0.0] * 6 + [0.25] + [0.2] * 2))

    def forward(self, aggregated_tokens: Sequence[torch.Tensor | None], num_iterations: int = 4) -> list[torch.Tensor]:
        """Read the last aggregator entry [B, S, P, dim_in]; return one pose encoding [B, S, 9] per round, best last."""
        tokens = self.token_norm(aggregated_tokens[-1][:, :, 0])  # [B, S, C]
        # The parameter-free adaptive norm does not depend on the pose: once is enough.
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        pose: torch.Tensor | None = None
        rounds = []
        for _ in range(num_iterations):
            so_far = self.empty_pose_tokens.expand(*tokens.shape[:2], -1) if pose is None else pose.detach()
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(so_far)).chunk(3, dim=-1)
            x = tokens + gate * (normed * (1 + scale) + shift)
            for block in self.trunk:
                x = block(x)
            correction = self.pose_branch(self.trunk_norm(x))
            pose = correction if pose is None else so_far + correction
            rounds.append(torch.cat([pose[..., :7], pose[..., 7:].relu()], dim=-1))
        return rounds
