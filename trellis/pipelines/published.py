"""Where the published networks are. Knows names and addresses only, so that it can be read without loading anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PIPELINE_REPOSITORY = "Stable-X/trellis-vggt-v0-2"
VGGT_REPOSITORY = "Stable-X/vggt-object-v0-1"

# Of weights whose checkpoint does not state it: those of VGGT are made from VGGT-1B, which is not for commercial use.
LICENCES = {VGGT_REPOSITORY: "CC-BY-NC-4.0"}


@dataclass(frozen=True)
class HubEncoder:
    """An image encoder known by its torch-hub entry: constructor arguments, and its weights' file, size, address and
    licence."""

    args: dict[str, Any]
    file: str
    bytes: int
    url: str
    licence: str


# Those that pipeline.json may name.
TORCH_HUB_ENCODERS = {
    "dinov2_vitl14_reg": HubEncoder(
        {"img_size": 518, "patch_size": 14, "embed_dim": 1024, "depth": 24, "num_heads": 16, "num_register_tokens": 4},
        "dinov2_vitl14_reg4_pretrain.pth",
        1_217_607_321,
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth",
        "Apache-2.0",
    )
}
