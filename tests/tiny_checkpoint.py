"""A complete checkpoint of random weights, small enough to write and run in about a second.

    folder = write_tiny_checkpoint(tmp_path)
    pipeline = TrellisVGGTTo3DPipeline.from_pretrained(folder)
    outputs, coords, noise = pipeline.run(tiny_views(2))

The layout is the published one. All nine networks are there, at minimal widths. What comes out is a lump of nothing in
particular, never empty, different for each seed, and the cameras stand near its front.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from trellis import models

IMAGE_RESOLUTION = 56  # 4 x 4 patches
RESOLUTION = 8  # of the voxel grid
WIDTH = 32
LEVELS = [0, 1, 2, 3]

_TRANSFORMER = {"model_channels": WIDTH, "num_blocks": 2, "num_heads": 2, "mlp_ratio": 2}
_FLOW = {**_TRANSFORMER, "in_channels": 8, "out_channels": 8, "cond_channels": WIDTH, "qk_rms_norm": True}
_DECODER = {**_TRANSFORMER, "resolution": RESOLUTION, "latent_channels": 8, "attn_mode": "swin", "window_size": 4}
_CONDITIONER = {"channels": WIDTH, "ctx_channels": 3 * WIDTH, "levels": LEVELS}

MODELS = {
    "sparse_structure_decoder": (
        "SparseStructureDecoder",
        {"out_channels": 1, "latent_channels": 8, "num_res_blocks": 1, "num_res_blocks_middle": 1, "channels": [16, 8]},
    ),
    "sparse_structure_flow_model": (
        "SparseStructureFlowModel",
        {**_FLOW, "resolution": RESOLUTION // 2, "patch_size": 1},
    ),
    "slat_decoder_gs": (
        "SLatGaussianDecoder",
        {
            **_DECODER,
            "representation_config": {
                "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
                "perturb_offset": True,
                "voxel_size": 1.5,
                "num_gaussians": 4,
                "2d_filter_kernel_size": 0.1,
                "3d_filter_kernel_size": 0.0009,
                "scaling_bias": 0.03,
                "opacity_bias": 0.5,
                "scaling_activation": "softplus",
            },
        },
    ),
    "slat_decoder_mesh": (
        "SLatMeshDecoder",
        {**_DECODER, "num_upsamples": 1, "num_groups": 4, "representation_config": {"use_color": True}},
    ),
    "slat_flow_model": (
        "SLatFlowModel",
        {**_FLOW, "resolution": RESOLUTION, "patch_size": 2, "num_io_res_blocks": 2, "io_block_channels": [16]},
    ),
    "sparse_structure_vggt_cond": (
        "ModulatedMultiViewCond",
        {**_CONDITIONER, "num_heads": 2, "num_init_tokens": 8, "qk_rms_norm": True},
    ),
    "slat_vggt_cond": ("ModulatedSLATMultiViewCond", _CONDITIONER),
}
ENCODERS = {
    "vggt_model": (
        "VGGT",
        {
            "img_size": IMAGE_RESOLUTION,
            "embed_dim": WIDTH,
            "depth": 4,
            "num_heads": 2,
            "patch_embed": {"depth": 1, "num_heads": 2},
            "camera_head": {"trunk_depth": 1, "num_heads": 2},
            "point_head": {"features": 8, "out_channels": [8, 8, 8, 8]},
            "intermediate_layers": LEVELS,
        },
    ),
    "image_cond_model": (
        "DinoVisionTransformer",
        {"img_size": IMAGE_RESOLUTION, "embed_dim": WIDTH, "depth": 1, "num_heads": 2},
    ),
}


def write_tiny_checkpoint(folder: Path, camera_frame: str = "object", use_fp16: bool = False) -> Path:
    """Write pipeline.json and ckpts/ into `folder`, and return it. `use_fp16` halves the flows and decoders."""
    (folder / "ckpts").mkdir(parents=True, exist_ok=True)
    stems = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for key, (name, args) in {**MODELS, **ENCODERS}.items():
            if use_fp16 and key in MODELS:
                args = {**args, "use_fp16": True}
            stems[key] = f"ckpts/{key}"
            (folder / f"{stems[key]}.json").write_text(json.dumps({"name": name, "args": args}))
            model = getattr(models, name)(**args)
            _enliven(model)
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / f"{stems[key]}.safetensors")
    sampler = {"name": "FlowEulerGuidanceIntervalSampler", "args": {"sigma_min": 1e-5}}
    params = {"cfg_strength": 2.0, "cfg_interval": [0.6, 1.0], "guidance_rescale": 0.5, "rescale_t": 3.0}
    args = {
        "models": {key: stems[key] for key in MODELS},
        **{key: stems[key] for key in ENCODERS},
        "sparse_structure_sampler": {**sampler, "params": {**params, "steps": 3}},
        "slat_sampler": {**sampler, "params": {**params, "steps": 2}},
        "slat_normalization": {"mean": [0.1] * 8, "std": [1.5] * 8},
        "image_resolution": IMAGE_RESOLUTION,
        "camera_frame": camera_frame,
    }
    content = {"name": "TrellisVGGTTo3DPipeline", "licence": "CC0-1.0", "args": args}
    (folder / "pipeline.json").write_text(json.dumps(content, indent=1))
    return folder


@torch.no_grad()
def _enliven(model: torch.nn.Module) -> None:
    """Small random values where training starts at zero, and biases that make the outputs solid."""
    for key, parameter in model.named_parameters():
        if key.endswith(".weight") and not parameter.any():
            parameter.normal_(std=0.1)
    if isinstance(model, models.VGGT):
        # The head sums four rounds: about two units in front of the object, on +y, looking at it, 46 degrees wide.
        pose = [0, 0, 2, 0, 0.5**0.5, -(0.5**0.5), 0, 0.8, 0.8]
        model.camera_head.pose_branch.fc2.bias.copy_(torch.tensor(pose) / 4)
    if isinstance(model, models.SLatMeshDecoder):
        model.out_layer.weight *= 0.2
        model.out_layer.bias[:8] = -0.5  # all voxels are inside, so the surface closes around them


def tiny_views(count: int = 2, size: int = IMAGE_RESOLUTION, transparent: bool = True) -> list[Image.Image]:
    """Drawn views of a coloured blob: RGBA with a usable alpha, or RGB before a plain backdrop."""
    views = []
    for index in range(count):
        image = Image.new("RGBA", (size, size), (0, 0, 0, 0) if transparent else (225, 225, 220, 255))
        draw = ImageDraw.Draw(image)
        left = size // 4 + index % 3
        draw.ellipse((left, size // 5, left + size // 2, size * 4 // 5), fill=(200, 60 + 20 * (index % 8), 40, 255))
        draw.rectangle((left + size // 6, size // 3, left + size // 3, size // 2), fill=(30, 30, 160, 255))
        views.append(image if transparent else image.convert("RGB"))
    return views
