"""Structure conditioner, flow and decoder: noise to the 16^3 x 8 latent under the tokens of all views, and to voxels.

    python -m training.structure_flow --data objects.safetensors --out runs --minutes 12
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from training.conditions import FrozenEncoders, ReadOut, count_parameters, drop_mask, logit_normal_times, noised
from training.data.objects import Instances
from training.data.voxels import occupancy
from training.graphs import Batch
from training.loop import Run, parser
from training.structure_vae import intersection_over_union, overlap_losses, structure_surfaces
from trellis.models import (
    ModulatedMultiViewCond,
    SparseStructureDecoder,
    SparseStructureEncoder,
    SparseStructureFlowModel,
)

TIME_MEAN = 1.5  # of true latents with noise
OWN_TIME_MEAN = 0.5  # of the network's own first outcome with noise
OVERLAP_WEIGHT = 0.2  # of what the decoder makes of the first step's outcome
VIEWS = (4, 2, 4, 8, 4, 1)  # few different shapes, so that recorded steps are reused


def by_token(grid: Tensor, tokens: int) -> Tensor:
    """Occupancy [B, 1, R, R, R] as the cells of each of `tokens`^3 flow tokens, [B, tokens^3, (R / tokens)^3]."""
    side = grid.shape[-1] // tokens
    cells = grid.reshape(len(grid), tokens, side, tokens, side, tokens, side)
    return cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(grid), tokens**3, side**3)


def spatial(times: Tensor) -> Tensor:
    """Times [B], to be multiplied with grids [B, C, R, R, R]."""
    return times[:, None, None, None, None]


def overlap_error(logits: Tensor, grid: Tensor) -> Tensor:
    """How far decoded occupancy is from the truth, [B]; logits and grid [B, 1, R, R, R]."""
    cross_entropy, dice = overlap_losses(logits, grid)
    return OVERLAP_WEIGHT * (4 * cross_entropy + dice)


class StructureTask:
    """What the structure's networks are trained on: targets of random instances, and the losses."""

    def __init__(self, run: Run):
        self.run = run
        sizes = run.sizes
        encoder = SparseStructureEncoder(**sizes.networks["ss_encoder"])
        self.encoder = run.frozen("structure_vae", "encoder", encoder)
        self.decoder = SparseStructureDecoder(**sizes.networks["ss_decoder"])
        self.decoder.load_state_dict(load_file(run.weights_of("structure_vae", "decoder")))
        if run.device.type == "cuda":
            self.decoder.to(memory_format=torch.channels_last_3d)
        self.cache = structure_surfaces(run)
        self.cond = ModulatedMultiViewCond(**sizes.networks["ss_cond"])
        self.flow = SparseStructureFlowModel(**sizes.networks["ss_flow"])
        self.side = self.flow.resolution // self.flow.patch_size  # tokens along an edge
        self.read_out = ReadOut(self.flow, (sizes.resolution // self.side) ** 3)
        self.networks = {"cond": self.cond, "flow": self.flow, "decoder": self.decoder, "read_out": self.read_out}
        print(f"[{run.name}] structure: {count_parameters(self.cond, self.flow):.1f} M parameters", flush=True)

    def draw(self, instances: Instances, later: bool = True) -> Batch:
        """True latents of the instances, noise for each, who sees the views, and with `later` times of later steps."""
        run, count = self.run, len(instances.objects)
        grid = occupancy(self.cache.points(instances, run.generator), run.sizes.resolution)
        with run.autocast():
            data = self.encoder(grid).float()
        batch = {
            "grid": grid,
            "data": data,
            "noise": torch.randn(data.shape, generator=run.generator, device=run.device),
            "keep": drop_mask(count, run.generator, run.device),
        }
        if later:
            batch["own time"] = logit_normal_times(count, OWN_TIME_MEAN, run.generator, run.device)
            batch["time"] = logit_normal_times(count, TIME_MEAN, run.generator, run.device)
        return batch

    def losses(self, tokens: list[Tensor | None], image_cond: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Errors of the velocity, of the occupancy that is read off on the way, and of the one that is decoded.

        A mean over all that the views allow, which is what the first step yields, decodes to less than is there: the
        decoder's losses make it decide, and the decoder learns to make voxels of such means, while it goes on being
        told what true latents stand for. What pleases the decoder is not what true latents look like under noise; so
        in batches with times of later steps every scene is predicted from two more states: its own first outcome under
        noise, which is what a second step begins with, and the truth under noise, as in any flow.
        """
        data, noise, keep = batch["data"], batch["noise"], batch["keep"]
        with self.run.autocast():
            context = self.cond(tokens, image_cond) * keep[:, None, None]
        velocity, cells = self._predict(noise, torch.ones_like(keep), context)
        outcome = noise - velocity
        errors = self._errors("IoU", outcome, cells, batch)
        if "time" in batch:
            own, _ = noised(outcome.detach(), noise, spatial(batch["own time"]))
            noisy, true_velocity = noised(data, noise, spatial(batch["time"]))
            velocity, cells = self._predict(
                torch.cat([own, noisy]), torch.cat([batch["own time"], batch["time"]]), context.repeat(2, 1, 1)
            )
            own_velocity, velocity = velocity.chunk(2)
            outcome = own - spatial(batch["own time"]) * own_velocity
            own_errors = self._errors("later IoU", outcome, cells.chunk(2)[0], batch)
            errors = {name: error + own_errors[name] for name, error in errors.items()}
            errors["flow"] = errors["flow"] + (velocity - true_velocity).square().mean()
        else:
            self.run.watch("later IoU", torch.full((), torch.nan, device=data.device))
        with self.run.autocast():
            decoded = self.decoder(data)
        return {**errors, "decoder": overlap_error(decoded.float(), batch["grid"]).mean()}

    def _predict(self, states: Tensor, times: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities of noisy states [B, C, R, R, R] at times [B], and the logits of the cells, float32."""
        with self.run.autocast():
            velocity = self.flow(states, 1000 * times, context)
            return velocity.float(), self.read_out().float()

    def _errors(self, title: str, outcome: Tensor, cells: Tensor, batch: Batch) -> dict[str, Tensor]:
        """How far an outcome [B, C, R, R, R] and its cells are from the truth; shows the overlap under `title`."""
        grid, keep = batch["grid"], batch["keep"]
        with self.run.autocast():
            decoded = self.decoder(outcome)
        self.run.watch(title, intersection_over_union(decoded.detach(), grid).median())
        occupied = F.binary_cross_entropy_with_logits(cells, by_token(grid, self.side), reduction="none").mean((1, 2))
        return {
            "flow": (outcome - batch["data"]).square().mean(),
            "cells": 2 * (keep * occupied).mean(),
            "overlap": (keep * overlap_error(decoded.float(), grid)).mean(),
        }


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, minutes=12, learning_rate=8e-4).parse_args(argv)
    run = Run("structure_flow", args)
    encoders, task = FrozenEncoders(run), StructureTask(run)

    def draw(step: int) -> Batch:
        instances = run.library.random_instances(run.batch(80), run.generator)
        tokens, image_cond = encoders(instances, VIEWS[step % len(VIEWS)])
        levels = {f"level {index}": t for index, t in enumerate(tokens) if t is not None}
        return {**levels, "image_cond": image_cond[:, :, 5:], **task.draw(instances)}

    def losses(batch: Batch) -> dict[str, Tensor]:
        tokens = [batch.get(f"level {index}") for index in range(1 + max(task.cond.levels))]
        return task.losses(tokens, batch["image_cond"], batch)

    run.train(task.networks, draw, losses)


if __name__ == "__main__":
    main()
