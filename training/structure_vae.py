"""Sparse-structure autoencoder: 32^3 occupancy to a 16^3 x 8 latent and back.

    python -m training.structure_vae --data objects.safetensors --out runs --minutes 1.5 --compile
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from training.data.surface import SurfaceCache
from training.data.voxels import occupancy
from training.loop import Run, parser
from trellis.models import SparseStructureDecoder, SparseStructureEncoder

KL_WEIGHT = 1e-3


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


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, minutes=1.5, learning_rate=2e-3).parse_args(argv)
    run = Run("structure_vae", args)
    cache = SurfaceCache(
        run.library, run.sizes.surface_samples, run.sizes.surface_views, run.sizes.surface_depth_size
    )
    encoder = SparseStructureEncoder(**run.sizes.networks["ss_encoder"])
    decoder = SparseStructureDecoder(**run.sizes.networks["ss_decoder"])
    if run.device.type == "cuda":
        encoder.to(memory_format=torch.channels_last_3d)
        decoder.to(memory_format=torch.channels_last_3d)
    for _ in run.train({"encoder": encoder, "decoder": decoder}):
        instances = run.library.random_instances(run.batch(96), run.generator)
        samples = cache.sample(instances, run.sizes.surface_samples, run.generator)
        grid = occupancy(samples, run.sizes.resolution)
        with run.autocast():
            _, mean, logvar = encoder(grid, sample_posterior=True, return_raw=True)
        mean, logvar = mean.float(), logvar.float()
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
        with run.autocast():
            logits = decoder(z)
        logits = logits.float()
        probability = logits.sigmoid()
        overlap = (probability * grid).sum((1, 2, 3, 4))
        dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2, 3, 4)) + grid.sum((1, 2, 3, 4)) + 1)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        bce = F.binary_cross_entropy_with_logits(logits, grid, pos_weight=torch.tensor(2.0, device=run.device))
        run.update({"bce": 4 * bce, "dice": dice.mean(), "kl": KL_WEIGHT * kl})
        if run.step % 200 == 0:
            hit = logits > 0
            union = (hit | (grid > 0)).sum((1, 2, 3, 4)).clamp(min=1)
            iou = (hit & (grid > 0)).sum((1, 2, 3, 4)) / union
            print(f"[structure_vae] IoU {iou.median():.3f} latent std {mean.std():.3f}", flush=True)
        spread = mean.detach().std((0, 2, 3, 4))
    unit_latent(run.average, spread)
    run.export()


if __name__ == "__main__":
    main()
