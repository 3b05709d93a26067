"""Sparse-structure autoencoder: 32^3 occupancy to a 16^3 x 8 latent and back.

    python -m training.structure_vae --data objects.safetensors --out runs --minutes 1.5
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.surface import SurfaceCache
from training.data.voxels import occupancy
from training.graphs import Batch
from training.loop import Run, parser
from trellis.models import SparseStructureDecoder, SparseStructureEncoder

KL_WEIGHT = 1e-3


def structure_surfaces(run: Run) -> SurfaceCache:
    """Surface samples for occupancy alone, which asks for fewer than what goes on inside the voxels."""
    sizes = run.sizes
    return SurfaceCache(
        run.library, sizes.surface_samples // 2, sizes.surface_views // 2, sizes.surface_depth_size * 3 // 4
    )


def unit_latent(weights: dict[str, torch.Tensor], std: torch.Tensor) -> None:
    """Fold the latent's deviation per channel [C] into the neighbouring convolutions, in place.

    The published pipeline has no normalisation for this latent, and the flow wants data about as large as its noise.
    """
    channels = len(std)
    scale = std.reshape(-1, *[1] * 4)
    out = [k for k in weights if k.startswith("encoder.out_layer") and k.endswith("weight") and weights[k].ndim == 5]
    weight, bias = weights[out[0]], weights[out[0].replace("weight", "bias")]
    weight[:channels] /= scale
    bias[:channels] /= std
    bias[channels:] -= 2 * std.log()
    weights["decoder.input_layer.weight"] *= scale.transpose(0, 1)


def overlap_losses(logits: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice loss of each object, two [B]; occupancy logits and grid [B, 1, R, R, R]."""
    every = (1, 2, 3, 4)
    cross_entropy = F.binary_cross_entropy_with_logits(
        logits, grid, pos_weight=torch.full_like(logits[:1], 2.0), reduction="none"
    ).mean(every)
    probability = logits.sigmoid()
    overlap = (probability * grid).sum(every)
    return cross_entropy, 1 - (2 * overlap + 1) / (probability.sum(every) + grid.sum(every) + 1)


def intersection_over_union(logits: Tensor, grid: Tensor) -> Tensor:
    """Of each object, [B]; occupancy logits and grid [B, 1, R, R, R]."""
    ours, true = (x.flatten(1) > 0 for x in (logits, grid))
    return (ours & true).sum(1) / (ours | true).sum(1).clamp(min=1)


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, minutes=1.5, learning_rate=2e-3, autoencoder=True).parse_args(argv)
    run = Run("structure_vae", args)
    cache = structure_surfaces(run)
    encoder = SparseStructureEncoder(**run.sizes.networks["ss_encoder"])
    decoder = SparseStructureDecoder(**run.sizes.networks["ss_decoder"]).requires_grad_(not args.keep_decoders)
    if run.device.type == "cuda":
        encoder.to(memory_format=torch.channels_last_3d)
        decoder.to(memory_format=torch.channels_last_3d)
    spread = torch.ones(0)

    def draw(step: int) -> Batch:
        instances = run.library.random_instances(run.batch(96), run.generator)
        grid = occupancy(cache.points(instances, run.generator), run.sizes.resolution)
        shape = len(grid), *[run.sizes.networks["ss_encoder"]["latent_channels"], *[run.sizes.resolution // 2] * 3]
        return {"grid": grid, "noise": torch.randn(shape, generator=run.generator, device=run.device)}

    def losses(batch: Batch) -> dict[str, Tensor]:
        nonlocal spread
        grid = batch["grid"]
        with run.autocast():
            _, mean, logvar = encoder(grid, sample_posterior=False, return_raw=True)
        mean, logvar = mean.float(), logvar.float()
        z = mean + batch["noise"] * torch.exp(0.5 * logvar)
        with run.autocast():
            logits = decoder(z)
        logits = logits.float()
        bce, dice = overlap_losses(logits, grid)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        run.watch("IoU", intersection_over_union(logits.detach(), grid).median())
        spread = mean.detach().std((0, 2, 3, 4))
        run.watch("deviation", spread.mean())
        return {"bce": 4 * bce.mean(), "dice": dice.mean(), "kl": KL_WEIGHT * kl}

    run.train({"encoder": encoder, "decoder": decoder}, draw, losses)
    if len(spread) and not args.keep_decoders:  # nor if the time was up before the first step
        unit_latent(run.average, spread)
        run.export()


if __name__ == "__main__":
    main()
