"""Structure conditioner and flow transformer: noise to the 16^3 x 8 structure latent, under the tokens of all views.

    python -m training.structure_flow --data objects.safetensors --out runs --minutes 12 --compile
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.conditions import FrozenEncoders, ReadOut, count_parameters, drop_mask, noised, sample_times
from training.data.surface import SurfaceCache
from training.data.voxels import occupancy
from training.loop import Run, parser
from trellis.models import ModulatedMultiViewCond, SparseStructureEncoder, SparseStructureFlowModel

DRAWS = 3  # times and noises for each rendered scene: rendering and reading views costs more than the flow itself
VIEWS = (4, 2, 4, 8, 4, 1)  # few different shapes, so that compiled blocks are reused


def by_token(grid: Tensor, tokens: int) -> Tensor:
    """Occupancy [B, 1, R, R, R] as the cells of each of `tokens`^3 flow tokens, [B, tokens^3, (R / tokens)^3]."""
    side = grid.shape[-1] // tokens
    cells = grid.reshape(len(grid), tokens, side, tokens, side, tokens, side)
    return cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(grid), tokens**3, side**3)


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, minutes=12, learning_rate=8e-4).parse_args(argv)
    run = Run("structure_flow", args)
    encoders = FrozenEncoders(run)
    structure = SparseStructureEncoder(**run.sizes.networks["ss_encoder"])
    structure = run.frozen("structure_vae", "encoder", structure)
    cache = SurfaceCache(
        run.library, run.sizes.surface_samples, run.sizes.surface_views, run.sizes.surface_depth_size
    )
    cond = ModulatedMultiViewCond(**run.sizes.networks["ss_cond"])
    flow = SparseStructureFlowModel(**run.sizes.networks["ss_flow"])
    side = flow.resolution // flow.patch_size  # tokens along an edge
    read_out = ReadOut(flow, (run.sizes.resolution // side) ** 3)
    print(f"[structure_flow] {count_parameters(cond, flow):.1f} M parameters", flush=True)
    for step in run.train({"cond": cond, "flow": flow, "read_out": read_out}):
        per_scene = VIEWS[step % len(VIEWS)]
        scenes = run.batch(80)
        count = scenes * DRAWS
        with torch.no_grad():
            instances = run.library.random_instances(scenes, run.generator)
            tokens, image_cond = encoders(instances, per_scene)
            samples = cache.sample(instances, run.sizes.surface_samples, run.generator)
            grid = occupancy(samples, run.sizes.resolution)
            with run.autocast():
                data = structure(grid).float()
            data = data.repeat(DRAWS, 1, 1, 1, 1)
            noise = torch.randn(data.shape, generator=run.generator, device=run.device)
            t = sample_times(count, run.generator, run.device)
            x, velocity = noised(data, noise, t[:, None, None, None, None])
            keep = drop_mask(count, run.generator, run.device)
        with run.autocast():
            context = cond(tokens, image_cond[:, :, 5:]).repeat(DRAWS, 1, 1) * keep[:, None, None]
            prediction = flow(x, 1000 * t, context)
            cells = read_out()
        target = by_token(grid, side).repeat(DRAWS, 1, 1)
        occupied = F.binary_cross_entropy_with_logits(cells.float(), target, reduction="none").mean((1, 2))
        run.update({"flow": (prediction.float() - velocity).square().mean(), "cells": 2 * (keep * occupied).mean()})


if __name__ == "__main__":
    main()
