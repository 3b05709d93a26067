"""Decoder from the structured latent to a mesh, by way of FlexiCubes parameters on a finer grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...modules.sparse import SparseConv3d, SparseGroupNorm32, SparseLinear, SparseSiLU, SparseTensor, subdivide
from ...modules.sparse.spatial import subdivided
from ...modules.transformer import zero_init
from .base import SparseTransformerBase

if TYPE_CHECKING:
    from ...representations.mesh import MeshExtractResult

CUBE_CHANNELS = 8 + 8 * 3 + 21  # signed distance and offset of the corners, FlexiCubes weights of the cube
COLOR_CHANNELS = 8 * 6  # rgb and normal of the corners
_ROWS_AT_ONCE = 1 << 17
_BRIDGE, _BRIDGE_WIDTH = 4, 0.9  # voxels: the longest that joins two pieces, and where its widening has faded out


class SparseSubdivideBlock3d(nn.Module):
    """Splits each voxel into eight and refines them with two convolutions.

    Args:
        channels: width of the input.
        out_channels: width of the output; by default that of the input.
        num_groups: groups of the norms; divides both widths.
    """

    def __init__(self, channels: int, out_channels: int | None = None, num_groups: int = 32) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.act_layers = nn.Sequential(SparseGroupNorm32(num_groups, channels), SparseSiLU())
        self.out_layers = nn.Sequential(
            SparseConv3d(channels, out_channels),
            SparseGroupNorm32(num_groups, out_channels),
            SparseSiLU(),
            SparseConv3d(out_channels, out_channels),
        )
        zero_init(self.out_layers[-1].conv)
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else SparseConv3d(channels, out_channels, kernel_size=1)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """``[N, channels] -> [8 N, out_channels]`` at twice the resolution."""
        first, norm, _, last = self.out_layers  # the activations are done by the norms before them
        h = first.forward_copied(self.act_layers[0](x, silu=True), *subdivided(x.sites))
        return last(norm(h, silu=True)) + subdivide(self.skip_connection(x))


def lower_where_no_surface_is_near(
    coords: Tensor, sdf: Tensor, cells: int, threshold: float, limit: float
) -> Tensor:
    """Lower signed distances around voxels that have no surface in them or beside them until they have one.

    What a decoder is unsure of it puts a little outside everywhere, and thin parts vanish, though the structure has
    voxels for them. The lowering is trilinear between the voxels' corners, so that voxels still agree on shared ones.

    Args:
        coords: int [M, 3], cubes of a grid `cells` times finer than the voxels', those of whole voxels.
        sdf: [M, 8] at the cubes' corners, x fastest; not changed.
        threshold: what the lowest distance of a voxel's neighbourhood has to be.
        limit: how far distances are lowered at most: beyond it the decoder is sure that nothing is there.

    Returns:
        [M, 8] distances.
    """
    voxel = coords.long() // cells
    side = int(voxel.max()) + 1
    row = (voxel[:, 0] * side + voxel[:, 1]) * side + voxel[:, 2]
    grid = 1, 1, side, side, side
    lowest = sdf.new_full((side**3,), torch.inf).scatter_reduce(0, row, sdf.amin(1), "amin").view(grid)
    active = (lowest < torch.inf).to(sdf.dtype)
    near = -F.max_pool3d(-lowest, 3, 1, 1)
    missing = torch.where(active > 0, (near - threshold).clamp(0, limit), 0.0)
    total, share = (F.avg_pool3d(F.pad(x, [1] * 6), 2, 1) for x in (missing, active))
    corners = total / share.clamp(min=1 / 8)
    fine = F.interpolate(corners, [side * cells + 1] * 3, mode="trilinear", align_corners=True)[0, 0]
    x, y, z = (coords.long()[:, axis, None] + torch.arange(8, device=coords.device) // 2**axis % 2 for axis in range(3))
    return sdf - fine[x, y, z]


class SLatMeshDecoder(SparseTransformerBase):
    """Decodes the latent into FlexiCubes parameters on a grid finer by ``2^num_upsamples``.

    Args:
        resolution: edge of the voxel grid of the latent.
        model_channels: width of the transformer; block k of the upsampling has 1/4, 1/8, ... of it.
        latent_channels: width of the latent.
        num_blocks: transformer blocks.
        representation_config: `use_color`, whether corners carry colour and normal; `sdf_bias`, what is added to signed
            distances, in cells, if not what published decoders expect; `sdf_margin` and `sdf_limit`, if present, how
            deep in cells distances have to go near each voxel, and by how much they may be lowered for that
            (`lower_where_no_surface_is_near`); the same for gaps between pieces (`bridge_gaps`).
        num_upsamples: subdivisions of the grid.
        num_groups: groups of the norms in the upsampling; divides the widths of its blocks.
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
        num_upsamples: int = 2,
        num_groups: int = 32,
        use_fp16: bool = False,
        **trunk,
    ) -> None:
        super().__init__(latent_channels, model_channels, num_blocks, num_heads, **trunk)
        self.resolution, self.latent_channels = resolution, latent_channels
        self.output_resolution = resolution * 2**num_upsamples
        self.rep_config = representation_config
        widths = [model_channels, *(model_channels // 2 ** (k + 2) for k in range(num_upsamples))]
        self.upsample = nn.ModuleList(
            SparseSubdivideBlock3d(width, finer, num_groups) for width, finer in zip(widths, widths[1:], strict=False)
        )
        out_channels = CUBE_CHANNELS + (COLOR_CHANNELS if representation_config.get("use_color") else 0)
        self.out_layer = SparseLinear(widths[-1], out_channels)
        zero_init(self.out_layer)
        if use_fp16:
            self.convert_to_fp16()

    def torso(self) -> list[nn.Module]:
        """The transformer and the upsampling blocks."""
        return [self.blocks, self.upsample]

    def decode_raw(self, x: SparseTensor) -> SparseTensor:
        """Latent ``[N, latent_channels]`` to cube parameters ``[N * 8^num_upsamples, 53 or 101]``.

        The channels are those of `trellis.representations.flexicubes.cubes_to_mesh`.
        """
        h = self.encode_voxels(x)
        for block in self.upsample:
            h = block(h)
        if torch.is_grad_enabled() and h.feats.requires_grad:
            return self.out_layer(h.type(x.dtype)).type(x.dtype)
        # Row by row: at full size the last layer's input alone would be a copy of 700 MB in float32.
        weight, bias = self.out_layer.weight, self.out_layer.bias
        out = h.feats.new_empty(len(h.feats), len(weight), dtype=x.dtype)
        for start in range(0, len(out), _ROWS_AT_ONCE):
            rows = h.feats[start : start + _ROWS_AT_ONCE].to(x.dtype)
            out[start : start + _ROWS_AT_ONCE] = F.linear(rows, weight, bias)
        return h.replace(out)

    def to_representation(self, raw: SparseTensor) -> list[MeshExtractResult]:
        """One mesh for each sample of the batch; `raw` is from `decode_raw`."""
        from ...representations.flexicubes import bridge_gaps, cubes_to_mesh

        bias, margin = self.rep_config.get("sdf_bias"), self.rep_config.get("sdf_margin")
        meshes = []
        for rows in raw.layout:
            coords, cubes = raw.coords[rows, 1:], raw.feats[rows]
            if margin is not None:
                cells, limit = self.output_resolution // self.resolution, self.rep_config["sdf_limit"]
                sdf = lower_where_no_surface_is_near(coords, cubes[:, :8] + bias, cells, -margin, limit)
                reach, width = _BRIDGE * cells, _BRIDGE_WIDTH * cells
                sdf = bridge_gaps(
                    coords, sdf, self.output_resolution, reach=reach, width=width, depth=margin, limit=limit
                )
                cubes = torch.cat([sdf - bias, cubes[:, 8:]], 1)
            meshes.append(cubes_to_mesh(coords, cubes, self.output_resolution, sdf_bias=bias))
        return meshes

    def forward(self, x: SparseTensor) -> list[MeshExtractResult]:
        """Latent ``[N, latent_channels]`` to one mesh for each sample."""
        return self.to_representation(self.decode_raw(x))
