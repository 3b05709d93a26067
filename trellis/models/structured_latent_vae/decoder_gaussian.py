"""Decoder from the structured latent to 3D Gaussians."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...modules.sparse import SparseTensor
from ...modules.transformer import zero_init
from ...representations.gaussian import Gaussian
from .base import SparseTransformerBase

# Fields of one Gaussian in the order in which the output layer stores them.
FIELDS = {"_xyz": (3,), "_features_dc": (1, 3), "_scaling": (3,), "_rotation": (4,), "_opacity": (1,)}


def _radical_inverse(index: int, base: int) -> float:
    """Digits of `index` in `base`, mirrored at the decimal point."""
    value, digit = 0.0, 1.0
    while index:
        digit /= base
        value += digit * (index % base)
        index //= base
    return value


def spread_offsets(num_gaussians: int, voxel_size: float) -> Tensor:
    """Pre-activation offsets ``[num_gaussians, 3]`` that spread the Gaussians of a voxel evenly in it.

    They are the points of a 3-D Hammersley set, mapped through the inverse of the activation that `decode_fields`
    applies to offsets.
    """
    points = [
        [i / num_gaussians, _radical_inverse(i, 2), _radical_inverse(i, 3)] for i in range(num_gaussians)
    ]
    return torch.tensor([[math.atanh((2 * c - 1) / voxel_size) for c in point] for point in points])


class SLatGaussianDecoder(SparseTransformerBase):
    """Decodes each voxel of the latent into a fixed number of Gaussians near it.

    Args:
        resolution: edge of the voxel grid.
        model_channels: width of the transformer.
        latent_channels: width of the latent.
        num_blocks: transformer blocks.
        representation_config: `num_gaussians` per voxel; `lr`, a multiplier for each raw field; `perturb_offset`,
            whether centres start spread over the voxel; `voxel_size`, reach of the centres in voxels; and
            `3d_filter_kernel_size`, `scaling_bias`, `opacity_bias`, `scaling_activation` of `Gaussian`.
        use_fp16: run the torso in float16; input and output stay float32.
        **trunk: the other arguments of `SparseTransformerBase`.
    """

    def __init__(
        self,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        *,
        representation_config: dict,
        use_fp16: bool = False,
        **trunk,
    ) -> None:
        super().__init__(latent_channels, model_channels, num_blocks, num_heads, **trunk)
        self.resolution, self.latent_channels = resolution, latent_channels
        self.rep_config = representation_config
        self.num_gaussians = representation_config["num_gaussians"]
        width = sum(math.prod(shape) for shape in FIELDS.values())
        self.out_layer = nn.Linear(model_channels, self.num_gaussians * width)
        zero_init(self.out_layer)
        if representation_config["perturb_offset"]:
            offsets = spread_offsets(self.num_gaussians, representation_config["voxel_size"])
        else:
            offsets = torch.zeros(self.num_gaussians, 3)
        self.register_buffer("offset_perturbation", offsets)
        if use_fp16:
            self.convert_to_fp16()

    def decode_raw(self, x: SparseTensor) -> SparseTensor:
        """Latent ``[N, latent_channels]`` to raw fields ``[N, num_gaussians * 14]``, stored field by field."""
        h = self.encode_voxels(x).type(x.dtype)
        return h.replace(self.out_layer(F.layer_norm(h.feats, h.feats.shape[-1:]))).type(x.dtype)

    def decode_fields(self, raw: SparseTensor) -> dict[str, Tensor]:
        """Stored fields of the Gaussians of the whole batch.

        Args:
            raw: from `decode_raw`.

        Returns:
            `FIELDS` by name, float32 ``[N * num_gaussians, ...]`` each, voxel by voxel; `_xyz` in [0, 1] of the grid.
        """
        n = self.num_gaussians
        fields, start = {}, 0
        for name, shape in FIELDS.items():
            stop = start + n * math.prod(shape)
            field = raw.feats[:, start:stop].float().unflatten(1, (n, *shape)) * self.rep_config["lr"][name]
            start = stop
            if name == "_xyz":
                centre = (raw.coords[:, None, 1:] + 0.5) / self.resolution
                reach = 0.5 * self.rep_config["voxel_size"] / self.resolution
                field = centre + torch.tanh(field + self.offset_perturbation) * reach
            fields[name] = field.flatten(0, 1)
        return fields

    def to_representation(self, raw: SparseTensor) -> list[Gaussian]:
        """One `Gaussian` for each sample of the batch; `raw` is from `decode_raw`."""
        fields = self.decode_fields(raw)
        gaussians = []
        for rows in raw.layout:
            gaussian = Gaussian(
                aabb=[-0.5, -0.5, -0.5, 1.0, 1.0, 1.0],
                sh_degree=0,
                mininum_kernel_size=self.rep_config["3d_filter_kernel_size"],
                scaling_bias=self.rep_config["scaling_bias"],
                opacity_bias=self.rep_config["opacity_bias"],
                scaling_activation=self.rep_config["scaling_activation"],
                device=raw.device,
            )
            for name, field in fields.items():
                setattr(gaussian, name, field[rows.start * self.num_gaussians : rows.stop * self.num_gaussians])
            gaussians.append(gaussian)
        return gaussians

    def forward(self, x: SparseTensor) -> list[Gaussian]:
        """Latent ``[N, latent_channels]`` to one `Gaussian` for each sample."""
        return self.to_representation(self.decode_raw(x))
