"""Structured-latent autoencoder: surface samples per voxel to 19 numbers, and back to Gaussians and a mesh field.

    python -m training.latent_vae --data objects.safetensors --out runs --minutes 7

The decoders are supervised in 3D: Gaussians against the surface samples of their voxel, the mesh field against signed
distance, colour and normal at the cube corners. Nothing is rendered. Active voxels are as rough as those of a sampled
structure: a latent also says that nothing fills its voxel. `training.latent_flow` trains the decoders further.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch import Tensor

from training.assemble import assembled_statistics
from training.conditions import count_parameters
from training.data.objects import Instances
from training.data.surface import SurfaceCache, SurfaceSamples, misalign
from training.data.voxels import CornerTargets, VoxelBatch, corner_targets, occupancy, rough_support, voxelise
from training.graphs import Batch
from training.loop import Run, parser
from trellis.models import SLatEncoder, SLatGaussianDecoder, SLatMeshDecoder
from trellis.modules.sparse import SparseTensor

KL_WEIGHT = 1e-3
COLOUR_NOISE = 0.03  # of the colours among the latents, which no posterior blurs; the flow's will not be exact either
TANGENT, NORMAL = 0.13, 0.035  # deviations of the wanted splats, in voxels: flat discs that just overlap
OPACITY = 0.97


def gaussian_losses(raw: SparseTensor, decoder: SLatGaussianDecoder, voxels: VoxelBatch) -> dict[str, Tensor]:
    """Two-sided nearest-neighbour distances between a voxel's Gaussians and its samples; colour, shape, opacity. Those
    of empty voxels have to be transparent, whatever else they are."""
    samples = decoder.to_representation(raw)
    resolution, shape, filled = decoder.resolution, (-1, decoder.num_gaussians), voxels.filled

    def field(of) -> Tensor:
        return torch.cat([of(splats) for splats in samples]).unflatten(0, shape)

    opacity = field(lambda g: g.get_opacity).clamp(1e-4, 1 - 1e-4)
    wanted_opacity = (OPACITY * filled[:, None, None]).expand_as(opacity)
    centre = (voxels.coords[:, None, 1:].float() + 0.5) / resolution - 0.5
    means = ((field(lambda g: g.get_xyz) - centre) * resolution)[filled]  # [N, K, 3] in voxels from the voxel's centre
    distance = (means[:, :, None] - voxels.points[filled, None]).square().sum(-1)  # [N, K, slots]
    to_sample, sample = distance.min(2)
    to_gaussian, gaussian = distance.min(1)
    row = torch.arange(len(sample), device=sample.device)[:, None]
    colours, target = field(lambda g: g.raw_color)[filled], voxels.colours[filled]
    colour = (colours - target[row, sample]).abs().mean() + (colours[row, gaussian] - target).abs().mean()
    normal = voxels.normals[filled][row, sample]
    i, j = torch.triu_indices(3, 3, device=normal.device)  # the order of the six stored covariance entries
    wanted = TANGENT**2 * (i == j) + (NORMAL**2 - TANGENT**2) * normal[..., i] * normal[..., j]
    covariance = field(lambda g: g.get_covariance())[filled] * resolution**2
    return {
        "means": to_sample.mean() + to_gaussian.mean(),
        "colour": colour,
        "shape": (covariance - wanted).abs().mean() / TANGENT**2,
        "opacity": 0.3 * F.binary_cross_entropy(opacity, wanted_opacity),
    }


def mesh_losses(cubes: SparseTensor, targets: CornerTargets) -> dict[str, Tensor]:
    """Signed distance, inside or outside, colour and normal at cube corners; deformation and weights stay near zero."""
    feats = cubes.feats.float()
    sdf, deform, weights, colour = feats.split([8, 24, 21, 48], 1)
    near_surface = targets.weight / (0.5 + targets.sdf.abs())
    colour = colour.reshape(-1, 8, 6).sigmoid()
    wanted = torch.cat([targets.colours, targets.normals * 0.5 + 0.5], -1)
    weight = (targets.near & (targets.sdf.abs() < 1.5)).float()[..., None]
    return {
        "sdf": (near_surface * (sdf - targets.sdf).abs()).mean(),
        "inside": 0.3 * F.binary_cross_entropy_with_logits(4 * sdf, (targets.sdf > 0).float(), targets.weight),
        "vertex": 2 * (weight * (colour - wanted).abs()).sum() / weight.sum().clamp(min=1) / 6,
        "regular": 1e-2 * (deform.square().mean() + weights.square().mean()),
    }


def surface_overlap(cubes: Tensor, voxels: VoxelBatch) -> Tensor:
    """Intersection over union of the voxels in which cubes [N c, 53 or 101] change sign and those that are filled."""
    sdf = cubes[:, :8].reshape(len(voxels.coords), -1)
    crossed = (sdf.amin(1) < 0) & (sdf.amax(1) > 0)
    return (crossed & voxels.filled).sum() / (crossed | voxels.filled).sum().clamp(min=1)


def draw_voxels(run: Run, cache: SurfaceCache, instances: Instances) -> tuple[SurfaceSamples, VoxelBatch]:
    """Samples of the instances' surfaces and voxels as a guessed structure might have them."""
    resolution, generator = run.sizes.resolution, run.generator
    samples = cache.sample(instances, run.sizes.surface_samples, generator)
    support = rough_support(occupancy(misalign(samples, generator).points, resolution), generator)
    return samples, voxelise(samples, resolution, support=support)


@torch.no_grad()
def latent_statistics(run: Run, cache: SurfaceCache, encoder: SLatEncoder, rounds: int) -> dict[str, list[float]]:
    """Mean and deviation of each latent channel over training objects, for `slat_normalization`."""
    latents = []
    for _ in range(rounds):
        instances = run.library.random_instances(run.batch(8), run.generator)
        _, voxels = draw_voxels(run, cache, instances)
        with run.autocast():
            z = encoder(SparseTensor(feats=voxels.feats, coords=voxels.coords), sample_posterior=False)
        latents.append(voxels.latent(z.feats))
    stacked = torch.cat(latents)
    return {"mean": stacked.mean(0).tolist(), "std": stacked.std(0).tolist()}


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, minutes=7, learning_rate=1e-3, autoencoder=True).parse_args(argv)
    run = Run("latent_vae", args)
    cache = SurfaceCache(
        run.library, run.sizes.surface_samples, run.sizes.surface_views, run.sizes.surface_depth_size
    )
    networks = run.sizes.networks
    encoder = SLatEncoder(**networks["slat_encoder"])
    gaussians = SLatGaussianDecoder(**networks["slat_decoder_gs"])
    mesh = SLatMeshDecoder(**networks["slat_decoder_mesh"])
    if args.keep_decoders:
        gaussians.requires_grad_(False)
        mesh.requires_grad_(False)
    print(f"[latent_vae] {count_parameters(encoder, gaussians, mesh):.1f} M parameters", flush=True)

    def draw(step: int) -> Batch:
        instances = run.library.random_instances(run.batch(12), run.generator)
        samples, voxels = draw_voxels(run, cache, instances)
        return {"instances": instances, "samples": samples, "voxels": voxels}

    def losses(batch: Batch) -> dict[str, Tensor]:
        voxels = batch["voxels"]
        x = SparseTensor(feats=voxels.feats, coords=voxels.coords)
        with run.autocast():
            z, mean, logvar = encoder(x, sample_posterior=True, return_raw=True)
            latent = voxels.latent(z.feats)
            latent[:, -3:] += COLOUR_NOISE * torch.randn_like(latent[:, -3:])
            z = z.replace(latent)
            raw = gaussians.decode_raw(z)
            cubes = mesh.decode_raw(z)
        run.watch("IoU", surface_overlap(cubes.feats, voxels))
        mean, logvar = (v.feats.float() if isinstance(v, SparseTensor) else v.float() for v in (mean, logvar))
        with torch.no_grad():
            targets = corner_targets(
                cubes.coords, batch["samples"], cache, batch["instances"], mesh.output_resolution
            )
        return {
            **gaussian_losses(raw.replace(raw.feats.float()), gaussians, voxels),
            **mesh_losses(cubes, targets),
            "kl": KL_WEIGHT * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean(),
        }

    # Every batch has its own number of voxels, so its steps cannot be recorded.
    run.train({"encoder": encoder, "gs": gaussians, "mesh": mesh}, draw, losses, graphs=False)
    if run.peers.rank:
        return
    encoder.load_state_dict({k[8:]: v for k, v in run.average.items() if k.startswith("encoder.")})
    if args.keep_decoders:
        statistics = assembled_statistics(args.init)
    else:
        statistics = latent_statistics(run, cache, encoder.eval(), rounds=2 if args.tiny else 20)
    (run.folder / "normalization.json").write_text(json.dumps(statistics, indent=1))
    print(f"[latent_vae] latent std {[round(v, 2) for v in statistics['std']]}", flush=True)


if __name__ == "__main__":
    main()
