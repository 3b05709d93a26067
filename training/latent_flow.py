"""Structured-latent conditioner and flow transformer: noise on active voxels to latents, under the views' tokens.

    python -m training.latent_flow --data objects.safetensors --out runs --minutes 12 --compile
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from training.conditions import FrozenEncoders, ReadOut, count_parameters, drop_mask, noised, sample_times
from training.data.objects import Instances, rotation_x, rotation_z
from training.data.surface import SurfaceCache, SurfaceSamples
from training.data.voxels import voxelise
from training.loop import Run, parser
from trellis.models import ModulatedSLATMultiViewCond, SLatEncoder, SLatFlowModel
from trellis.modules.sparse import SparseTensor

DRAWS = 2  # times and noises for each rendered scene
VIEWS = (4, 2, 4, 8, 4, 1)


def misalign(samples: SurfaceSamples, instances: Instances, generator: torch.Generator) -> SurfaceSamples:
    """Turn and shift the surface a little against its photographs, as sampled structures are."""
    count, device = len(instances.objects), samples.points.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    turn = rotation_z(normal(count) * 0.05) @ rotation_x(normal(count) * 0.03)
    shift, scale = normal(count, 1, 3) * 0.01, 1 + normal(count, 1, 1) * 0.015
    points = torch.einsum("bij,bpj->bpi", turn, samples.points) * scale + shift
    return SurfaceSamples(
        points.clamp(-0.4999, 0.4999), torch.einsum("bij,bpj->bpi", turn, samples.normals), samples.colours
    )


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, minutes=12, learning_rate=8e-4).parse_args(argv)
    run = Run("latent_flow", args)
    encoders = FrozenEncoders(run)
    networks = run.sizes.networks
    latent = run.frozen("latent_vae", "encoder", SLatEncoder(**networks["slat_encoder"]))
    statistics = json.loads((args.out / "latent_vae" / "normalization.json").read_text())
    mean, std = (torch.tensor(statistics[k], device=run.device) for k in ("mean", "std"))
    cache = SurfaceCache(
        run.library, run.sizes.surface_samples, run.sizes.surface_views, run.sizes.surface_depth_size
    )
    cond = ModulatedSLATMultiViewCond(**networks["slat_cond"])
    flow = SLatFlowModel(**networks["slat_flow"])
    read_out = ReadOut(flow, 6)
    print(f"[latent_flow] {count_parameters(cond, flow):.1f} M parameters", flush=True)
    for step in run.train({"cond": cond, "flow": flow, "read_out": read_out}):
        per_scene = VIEWS[step % len(VIEWS)]
        scenes = run.batch(16)
        count = scenes * DRAWS
        with torch.no_grad():
            instances = run.library.random_instances(scenes, run.generator)
            tokens, image_cond = encoders(instances, per_scene)
            samples = cache.sample(instances, run.sizes.surface_samples, run.generator)
            voxels = voxelise(misalign(samples, instances, run.generator), run.sizes.resolution)
            with run.autocast():
                z = latent(SparseTensor(feats=voxels.feats, coords=voxels.coords), sample_posterior=False)
            data = ((voxels.latent(z.feats) - mean) / std).repeat(DRAWS, 1)
            first = torch.arange(DRAWS, device=run.device, dtype=torch.int32)[:, None, None] * scenes
            shift = first * torch.tensor([1, 0, 0, 0], device=run.device, dtype=torch.int32)
            coords = (voxels.coords + shift).flatten(0, 1)
            noise = torch.randn(data.shape, generator=run.generator, device=run.device)
            t = sample_times(count, run.generator, run.device)
            x, velocity = noised(data, noise, t[coords[:, 0].long(), None])
            keep = drop_mask(count, run.generator, run.device)[:, None, None]
        with run.autocast():
            context = [view.repeat(DRAWS, 1, 1) * keep for view in cond(tokens, image_cond)]
            prediction = flow(SparseTensor(feats=x, coords=coords), 1000 * t, context)
            looks = read_out()
        error = (looks.float() - voxels.looks.repeat(DRAWS, 1)).abs().mean(1)
        run.update(
            {
                "flow": (prediction.feats.float() - velocity).square().mean(),
                "looks": (keep[coords[:, 0].long(), 0, 0] * error).mean(),
            }
        )


if __name__ == "__main__":
    main()
