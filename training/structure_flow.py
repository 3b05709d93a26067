"""Structure conditioner and flow transformer: noise to the 16^3 x 8 structure latent, under the tokens of all views.

    python -m training.structure_flow --data objects.safetensors --out runs --minutes 12
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.conditions import FrozenEncoders, ReadOut, count_parameters, drop_mask, noised, sample_times
from training.data.objects import Instances
from training.data.voxels import occupancy
from training.graphs import Batch
from training.loop import Run, parser
from training.structure_vae import overlap_losses, structure_surfaces
from trellis.models import (
    ModulatedMultiViewCond,
    SparseStructureDecoder,
    SparseStructureEncoder,
    SparseStructureFlowModel,
)

DRAWS = 3  # times and noises for each rendered scene: rendering and reading views costs more than the flow itself
TIME_MEAN = 1.5
OVERLAP_WEIGHT = 0.2  # of what the decoder makes of the first step's outcome
VIEWS = (4, 2, 4, 8, 4, 1)  # few different shapes, so that recorded steps are reused


def by_token(grid: Tensor, tokens: int) -> Tensor:
    """Occupancy [B, 1, R, R, R] as the cells of each of `tokens`^3 flow tokens, [B, tokens^3, (R / tokens)^3]."""
    side = grid.shape[-1] // tokens
    cells = grid.reshape(len(grid), tokens, side, tokens, side, tokens, side)
    return cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(grid), tokens**3, side**3)


class StructureTask:
    """What the structure conditioner and flow are trained on: targets of random instances, and the losses."""

    def __init__(self, run: Run):
        self.run = run
        sizes = run.sizes
        encoder = SparseStructureEncoder(**sizes.networks["ss_encoder"])
        decoder = SparseStructureDecoder(**sizes.networks["ss_decoder"])
        self.encoder = run.frozen("structure_vae", "encoder", encoder)
        self.decoder = run.frozen("structure_vae", "decoder", decoder)
        if run.device.type == "cuda":
            self.decoder.to(memory_format=torch.channels_last_3d)
        self.cache = structure_surfaces(run)
        self.cond = ModulatedMultiViewCond(**sizes.networks["ss_cond"])
        self.flow = SparseStructureFlowModel(**sizes.networks["ss_flow"])
        self.side = self.flow.resolution // self.flow.patch_size  # tokens along an edge
        self.read_out = ReadOut(self.flow, (sizes.resolution // self.side) ** 3)
        self.networks = {"cond": self.cond, "flow": self.flow, "read_out": self.read_out}
        print(f"[{run.name}] structure: {count_parameters(self.cond, self.flow):.1f} M parameters", flush=True)

    def draw(self, instances: Instances, draws: int) -> Batch:
        """Noisy latents of each instance at `draws` times, what is to be predicted of them, and who sees the views."""
        run, count = self.run, draws * len(instances.objects)
        samples = self.cache.sample(instances, self.cache.count, run.generator)
        grid = occupancy(samples, run.sizes.resolution)
        with run.autocast():
            data = self.encoder(grid).float().repeat(draws, 1, 1, 1, 1)
        noise = torch.randn(data.shape, generator=run.generator, device=run.device)
        time = sample_times(len(grid), draws, run.generator, run.device, TIME_MEAN)
        noisy, velocity = noised(data, noise, time[:, None, None, None, None])
        return {
            "noisy": noisy,
            "velocity": velocity,
            "time": time,
            "keep": drop_mask(count, run.generator, run.device),
            "grid": grid,
        }

    def losses(self, tokens: list[Tensor | None], image_cond: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Errors of the velocity, of the occupancy that is read off on the way, and of the one that is decoded.

        A mean over all that the views allow, which is what the first step yields, decodes to less than is there: the
        decoder's losses make it decide.
        """
        grid, keep = batch["grid"], batch["keep"]
        scenes, draws = len(grid), len(batch["time"]) // len(grid)
        with self.run.autocast():
            context = self.cond(tokens, image_cond).repeat(draws, 1, 1) * keep[:, None, None]
            prediction = self.flow(batch["noisy"], 1000 * batch["time"], context)
            cells = self.read_out()
            outcome = batch["noisy"][:scenes] - prediction[:scenes]  # of the draws at t = 1
            decoded = self.decoder(outcome)
        cross_entropy, dice = overlap_losses(decoded.float(), grid)
        target = by_token(grid, self.side).repeat(draws, 1, 1)
        occupied = F.binary_cross_entropy_with_logits(cells.float(), target, reduction="none").mean((1, 2))
        return {
            "flow": (prediction.float() - batch["velocity"]).square().mean(),
            "cells": 2 * (keep * occupied).mean(),
            "overlap": OVERLAP_WEIGHT * (keep[:scenes] * (4 * cross_entropy + dice)).mean(),
        }


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, minutes=12, learning_rate=8e-4).parse_args(argv)
    run = Run("structure_flow", args)
    encoders, task = FrozenEncoders(run), StructureTask(run)

    def draw(step: int) -> Batch:
        instances = run.library.random_instances(run.batch(80), run.generator)
        tokens, image_cond = encoders(instances, VIEWS[step % len(VIEWS)])
        levels = {f"level {index}": t for index, t in enumerate(tokens) if t is not None}
        return {**levels, "image_cond": image_cond[:, :, 5:], **task.draw(instances, DRAWS)}

    def losses(batch: Batch) -> dict[str, Tensor]:
        tokens = [batch.get(f"level {index}") for index in range(1 + max(task.cond.levels))]
        return task.losses(tokens, batch["image_cond"], batch)

    run.train(task.networks, draw, losses)


if __name__ == "__main__":
    main()
