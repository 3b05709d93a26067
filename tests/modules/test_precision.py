"""Half precision that changes where weights are kept, not what comes out."""

from __future__ import annotations

import torch
from tiny_checkpoint import ENCODERS

from trellis.models import VGGT
from trellis.modules.precision import store_for_autocast


@torch.no_grad()
def test_weights_stored_for_autocast_give_the_same_bits():
    torch.manual_seed(0)
    aggregator = VGGT(**ENCODERS["vggt_model"][1]).eval().aggregator
    images = torch.rand(1, 2, 3, 56, 56)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = aggregator(images)
    before = sum(p.numel() * p.element_size() for p in aggregator.parameters())
    store_for_autocast(aggregator, torch.bfloat16)
    assert sum(p.numel() * p.element_size() for p in aggregator.parameters()) < 0.65 * before
    with torch.autocast("cpu", torch.bfloat16):
        actual, _ = aggregator(images)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert aggregator.camera_token.dtype == aggregator.frame_blocks[0].norm1.weight.dtype == torch.float32

    store_for_autocast(aggregator, torch.float32)
    aggregator(images)  # works without autocast again
