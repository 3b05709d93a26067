"""Sizes of the networks: `MINI` is what `assets/mini` ships, `TINY` runs every script within seconds on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from training.data.voxels import FEATURES as VOXEL_FEATURES

RESOLUTION = 32  # voxels per side of the structure; surfaces then have about 2,300, each of which becomes a token
ENCODED_CHANNELS = 16  # a voxel stands for 4^3 cells of the mesh grid, so its latent is wider than the published 8
# An encoder left to itself spends its first thousands of steps on shape and lightness and leaves the hues out, so the
# voxel's mean colour is part of the latent as it is.
LATENT_CHANNELS = ENCODED_CHANNELS + 3

MINI: dict[str, dict] = {
    "vggt": {
        "img_size": 168,
        "patch_size": 14,
        "embed_dim": 256,
        "depth": 6,
        "num_heads": 4,
        "init_values": 1.0,
        "patch_embed": {"depth": 1, "num_heads": 4},
        "camera_head": {"trunk_depth": 1, "num_heads": 8, "mlp_ratio": 2, "init_values": 1.0},
        "point_head": {"features": 32, "out_channels": [32, 48, 64, 64]},
        "intermediate_layers": [1, 3, 4, 5],
    },
    "dinov2": {
        "img_size": 168,
        "patch_size": 14,
        "embed_dim": 128,
        "depth": 4,
        "num_heads": 2,
        "num_register_tokens": 4,
    },
    "ss_encoder": {
        "in_channels": 1,
        "latent_channels": 8,
        "num_res_blocks": 1,
        "channels": [32, 96],
        "num_res_blocks_middle": 1,
    },
    "ss_decoder": {
        "out_channels": 1,
        "latent_channels": 8,
        "num_res_blocks": 1,
        "channels": [96, 32],
        "num_res_blocks_middle": 1,
    },
    "ss_cond": {
        "channels": 192,
        "ctx_channels": 2 * 256 + 128,
        "num_heads": 3,
        "num_init_tokens": 256,
        "qk_rms_norm": True,
        "levels": [1, 3, 4, 5],
    },
    "ss_flow": {
        "resolution": 16,
        "in_channels": 8,
        "out_channels": 8,
        "model_channels": 384,
        "cond_channels": 192,
        "num_blocks": 8,
        "num_heads": 6,
        "patch_size": 2,
        "share_mod": True,
        "qk_rms_norm": True,
    },
    "slat_cond": {"channels": 128, "ctx_channels": 2 * 256 + 128, "levels": [1, 3, 4, 5]},
    "slat_encoder": {
        "resolution": RESOLUTION,
        "in_channels": VOXEL_FEATURES,
        "model_channels": 256,
        "latent_channels": ENCODED_CHANNELS,
        "num_blocks": 4,
        "num_heads": 4,
        "attn_mode": "swin",
        "window_size": 8,
    },
    "slat_decoder_gs": {
        "resolution": RESOLUTION,
        "model_channels": 256,
        "latent_channels": LATENT_CHANNELS,
        "num_blocks": 4,
        "num_heads": 4,
        "attn_mode": "swin",
        "window_size": 8,
        "representation_config": {
            "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
            "perturb_offset": True,
            "voxel_size": 1.5,
            "num_gaussians": 32,
            "2d_filter_kernel_size": 0.1,
            "3d_filter_kernel_size": 0.0009,
            "scaling_bias": 0.004,
            "opacity_bias": 0.1,
            "scaling_activation": "softplus",
        },
    },
    "slat_decoder_mesh": {
        "resolution": RESOLUTION,
        "model_channels": 256,
        "latent_channels": LATENT_CHANNELS,
        "num_blocks": 4,
        "num_heads": 4,
        "attn_mode": "swin",
        "window_size": 8,
        # Training gives open sheets a body of 0.35 cells on either side (`corner_targets`). Where the views do not tell
        # the place, distances come out too great nevertheless: what is likeliest to be outside is outside.
        "representation_config": {"use_color": True, "sdf_bias": 0.0, "sdf_margin": 0.4, "sdf_limit": 1.4},
    },
    "slat_flow": {
        "resolution": RESOLUTION,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "model_channels": 320,
        "cond_channels": 128,
        "num_blocks": 10,
        "num_heads": 5,
        "patch_size": 1,
        "share_mod": True,
        "qk_rms_norm": True,
    },
}


@dataclass(frozen=True)
class Sizes:
    """Network arguments and data sizes of one training run."""

    networks: dict[str, dict]
    image_size: int
    resolution: int  # voxels per side of the structure
    surface_samples: int
    surface_views: int
    surface_depth_size: int
    batch_scale: float  # multiplies every script's batch


def sizes(tiny: bool = False, changes: Mapping[str, Mapping] | None = None) -> Sizes:
    """`MINI`, or the same networks shrunk to a few thousand weights at 56 px and 8^3 voxels; `changes`: arguments of
    networks that are to be others, by the networks' names."""
    chosen = _chosen(tiny)
    for name, arguments in (changes or {}).items():
        chosen.networks[name].update(arguments)
    return chosen


def _chosen(tiny: bool) -> Sizes:
    networks = copy.deepcopy(MINI)
    if not tiny:
        return Sizes(networks, 168, RESOLUTION, 49152, 28, 256, 1.0)
    levels = [0, 0, 1, 1]
    networks["vggt"].update(
        img_size=56, embed_dim=32, depth=2, num_heads=2, patch_embed={"depth": 1, "num_heads": 2},
        camera_head={"trunk_depth": 1, "num_heads": 2, "mlp_ratio": 2, "init_values": 1.0},
        point_head={"features": 8, "out_channels": [8, 8, 8, 8]}, intermediate_layers=levels,
    )
    networks["dinov2"].update(img_size=56, embed_dim=16, depth=1, num_heads=1)
    networks["ss_encoder"].update(channels=[8, 8])
    networks["ss_decoder"].update(channels=[8, 8])
    networks["ss_cond"].update(channels=16, ctx_channels=80, num_heads=1, num_init_tokens=8, levels=levels)
    networks["ss_flow"].update(resolution=4, model_channels=32, cond_channels=16, num_blocks=1, num_heads=1)
    networks["slat_cond"].update(channels=16, ctx_channels=80, levels=levels)
    small = {"resolution": 8, "model_channels": 32, "num_blocks": 1, "num_heads": 1}
    networks["slat_flow"].update(small, cond_channels=16)
    networks["slat_encoder"].update(small)
    networks["slat_decoder_gs"].update(small)
    networks["slat_decoder_mesh"].update(small, num_groups=4)
    return Sizes(networks, 56, 8, 2048, 12, 48, 0.02)
