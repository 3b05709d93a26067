"""A pipeline of the published sizes with random weights: nothing to download, and as fast or slow as the real one.

The sizes are those of the recorded manifests in tests/manifests.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trellis import models
from trellis.pipelines import TrellisVGGTTo3DPipeline

MANIFESTS = Path(__file__).resolve().parents[1] / "tests" / "manifests"
MODELS = (
    "sparse_structure_decoder", "sparse_structure_flow_model", "slat_decoder_gs", "slat_decoder_mesh",
    "slat_flow_model", "sparse_structure_vggt_cond", "slat_vggt_cond",
)  # fmt: skip
ENCODERS = {"vggt_model": "vggt", "image_cond_model": "image_cond_model_dinov2_vitl14_reg"}
VOXELS = 29_120  # of the object that the original was measured on

# Network -> its class and constructor arguments.
Sizes = dict[str, tuple[str, dict]]


def published_sizes() -> Sizes:
    """Classes and arguments of all networks, by their names in a checkpoint."""
    files = {key: key for key in MODELS} | ENCODERS
    manifests = {key: json.loads((MANIFESTS / f"{file}.json").read_text()) for key, file in files.items()}
    return {key: (manifest["cls"], manifest["args"]) for key, manifest in manifests.items()}


def random_pipeline(
    sizes: Sizes, device: torch.device, image_resolution: int = 518, seed: int = 0
) -> TrellisVGGTTo3DPipeline:
    """A pipeline of random networks, made on the device itself."""
    torch.manual_seed(seed)
    networks = {}
    for key, (name, args) in sizes.items():
        with device:
            networks[key] = getattr(models, name)(**args).eval()
        _enliven(networks[key])
    channels = networks["slat_flow_model"].in_channels
    pipeline = TrellisVGGTTo3DPipeline(
        {key: network for key, network in networks.items() if key not in ENCODERS},
        networks["vggt_model"],
        networks["image_cond_model"],
        slat_normalization={"mean": [0.0] * channels, "std": [1.0] * channels},
        image_resolution=image_resolution,
    )
    return pipeline.to(device)


def write_checkpoint(sizes: Sizes, folder: Path, device: torch.device, image_resolution: int = 518) -> int:
    """Write random networks in the published layout, one at a time; returns the bytes written."""
    (folder / "ckpts").mkdir(parents=True, exist_ok=True)
    written = 0
    for key, (name, args) in sizes.items():
        with device:
            network = getattr(models, name)(**args)
        _enliven(network)
        state = {k: v.contiguous().cpu() for k, v in network.state_dict().items()}
        save_file(state, folder / "ckpts" / f"{key}.safetensors")
        (folder / "ckpts" / f"{key}.json").write_text(json.dumps({"name": name, "args": args}))
        written += sum(v.numel() * v.element_size() for v in state.values())
    sampler = {"name": "FlowEulerGuidanceIntervalSampler", "args": {"sigma_min": 1e-5}, "params": {}}
    channels = sizes["slat_flow_model"][1]["in_channels"]
    args = {
        "models": {key: f"ckpts/{key}" for key in sizes if key not in ENCODERS},
        **{key: f"ckpts/{key}" for key in ENCODERS},
        "sparse_structure_sampler": sampler,
        "slat_sampler": sampler,
        "slat_normalization": {"mean": [0.0] * channels, "std": [1.0] * channels},
        "image_resolution": image_resolution,
    }
    (folder / "pipeline.json").write_text(json.dumps({"name": "TrellisVGGTTo3DPipeline", "args": args}))
    return written


def shell(voxels: int, resolution: int) -> Tensor:
    """Coordinates int32 [voxels, 4] of the surface of a ball, as thick as it takes."""
    axis = torch.arange(resolution, dtype=torch.int32)
    cells = torch.cartesian_prod(axis, axis, axis)
    distance = (cells - (resolution - 1) / 2).float().norm(dim=1)
    chosen = (distance - 0.375 * resolution).abs().argsort(stable=True)[:voxels].sort().values
    return torch.cat([torch.zeros(len(chosen), 1, dtype=torch.int32), cells[chosen]], dim=1)


@torch.no_grad()
def _enliven(network: nn.Module) -> None:
    """Small random values where training starts at zero, and a surface that closes around the voxels."""
    for parameter in network.parameters():
        if parameter.ndim >= 2 and not parameter.any():
            parameter.normal_(std=0.02)
    if isinstance(network, models.SLatMeshDecoder):
        network.out_layer.weight *= 0.2
        network.out_layer.bias[:8] = -0.5
