"""The trunk that encoder and decoders share: a transformer with shifted cubic windows."""

from __future__ import annotations

from torch import nn

from ...modules.embedding import AbsolutePositionEmbedder
from ...modules.precision import MixedPrecisionModel
from ...modules.sparse import SparseTensor
from ...modules.sparse.attention import in_windows, places, window_segments
from ...modules.sparse.transformer import SparseTransformerBlock
from ...modules.transformer import init_linear_layers

ATTENTION_MODES = ("full", "windowed", "swin")


class SparseTransformerBase(MixedPrecisionModel):
    """Input layer, position embedding and transformer blocks on sparse voxels, without an output.

    Args:
        in_channels: width of the input features.
        model_channels: width of the transformer.
        num_blocks: transformer blocks.
        num_heads: attention heads; by default ``model_channels // num_head_channels``.
        num_head_channels: channels of a head when `num_heads` is not given.
        mlp_ratio: hidden width of the feed-forward layers over `model_channels`.
        attn_mode: "full" (whole samples), "windowed" (cubes), or "swin" (cubes, shifted by half in odd blocks).
        window_size: edge of the windows in voxels.
        pe_mode: "ape" (absolute position embedding) is the only mode.
        use_checkpoint: recompute activations of the blocks in the backward pass.
        qk_rms_norm: RMS-normalise queries and keys.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int = 64,
        mlp_ratio: float = 4.0,
        attn_mode: str = "swin",
        window_size: int = 8,
        pe_mode: str = "ape",
        use_checkpoint: bool = False,
        qk_rms_norm: bool = False,
    ) -> None:
        super().__init__()
        if attn_mode not in ATTENTION_MODES:
            raise ValueError(f"attn_mode must be one of {', '.join(ATTENTION_MODES)}, got {attn_mode!r}")
        if pe_mode != "ape":
            raise ValueError(f"pe_mode must be 'ape', got {pe_mode!r}")
        self.in_channels, self.model_channels = in_channels, model_channels
        self.input_layer = nn.Linear(in_channels, model_channels)
        self.pos_embedder = AbsolutePositionEmbedder(model_channels)
        self.blocks = nn.ModuleList(
            SparseTransformerBlock(
                model_channels,
                num_heads or model_channels // num_head_channels,
                mlp_ratio,
                window_size=None if attn_mode == "full" else window_size,
                shift=window_size // 2 if attn_mode == "swin" and index % 2 else 0,
                qk_rms_norm=qk_rms_norm,
                use_checkpoint=use_checkpoint,
            )
            for index in range(num_blocks)
        )
        init_linear_layers(self)

    def torso(self) -> list[nn.Module]:
        """The transformer blocks."""
        return [self.blocks]

    def encode_voxels(self, x: SparseTensor) -> SparseTensor:
        """``[N, in_channels] -> [N, model_channels]`` in the precision of the blocks."""
        # Between the blocks the voxels lie in the order of the next block's windows: all but the attention treats each
        # voxel alone, and the sum that ends a block can write its rows anywhere.
        windows = [block.attn.window for block in self.blocks] + [None]
        layouts = [x.sites if window is None else in_windows(x.sites, *window) for window in windows]
        feats = x.feats
        if windows[0] is not None:
            feats = feats.index_select(0, window_segments(x.sites, *windows[0]).order)
        feats = self.input_layer(feats) + self.pos_embedder(layouts[0].coords[:, 1:])  # in float32, also under autocast
        h = SparseTensor(feats, sites=layouts[0]).type(self.dtype)
        for index, block in enumerate(self.blocks):
            h = block(h, layouts[index + 1], places(x.sites, windows[index], windows[index + 1]))
        return h
