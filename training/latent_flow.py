"""Structured-latent conditioner and flow transformer: noise on active voxels to latents, under the views' tokens.

    python -m training.latent_flow --data objects.safetensors --out runs --minutes 12
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from training.conditions import FrozenEncoders, ReadOut, count_parameters, drop_mask, logit_normal_times, noised
from training.data.objects import Instances, rotation_x, rotation_z
from training.data.surface import SurfaceCache, SurfaceSamples
from training.data.voxels import voxelise
from training.graphs import Batch
from training.loop import Run, parser
from trellis.models import ModulatedSLATMultiViewCond, SLatEncoder, SLatFlowModel
from trellis.modules.sparse import Sites, SparseTensor

DRAWS = 2  # for each rendered scene, the first at t = 1: there the views alone have to say what the object looks like
TIME_MEAN = 1.0  # of the others
VIEWS = (4, 2, 4, 8, 4, 1)
# Voxels of each object that take part in a step, drawn at random: attention hardly misses the others, and equal numbers
# need neither padding nor masks. Objects with fewer repeat some.
TOKENS = 1024


def equal_rows(owner: Tensor, count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Rows [count, wanted], drawn at random, of each of `count` objects; owner [N] int64 in ascending order."""
    order = (owner + torch.rand(len(owner), generator=generator, device=owner.device, dtype=torch.float64)).argsort()
    sizes = torch.bincount(owner, minlength=count)
    slot = torch.arange(wanted, device=owner.device) % sizes[:, None]
    return order[(sizes.cumsum(0) - sizes)[:, None] + slot]


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
    wanted = TOKENS if not args.tiny else 64

    def draw(step: int) -> Batch:
        scenes = run.batch(24)
        count = scenes * DRAWS
        instances = run.library.random_instances(scenes, run.generator)
        tokens, image_cond = encoders(instances, VIEWS[step % len(VIEWS)])
        samples = cache.sample(instances, run.sizes.surface_samples, run.generator)
        voxels = voxelise(misalign(samples, instances, run.generator), run.sizes.resolution)
        with run.autocast():
            z = latent(SparseTensor(feats=voxels.feats, coords=voxels.coords), sample_posterior=False)
        data = (voxels.latent(z.feats) - mean) / std
        owner = voxels.coords[:, 0].long()
        rows = equal_rows(owner, scenes, wanted, run.generator).repeat(DRAWS, 1)  # [count, wanted]
        later = logit_normal_times(count - scenes, TIME_MEAN, run.generator, run.device)
        time = torch.cat([torch.ones(scenes, device=run.device), later])
        # Repeated voxels must also repeat their noise, or they would give each other away.
        noise = torch.randn(DRAWS, *data.shape, generator=run.generator, device=run.device)
        noise = noise[torch.arange(count, device=run.device)[:, None] // scenes, rows]
        noisy, velocity = noised(data[rows], noise, time[:, None, None])
        coords = voxels.coords[rows]
        coords[..., 0] = torch.arange(count, device=run.device, dtype=coords.dtype)[:, None]
        return {
            **{f"level {index}": t for index, t in enumerate(tokens) if t is not None},
            "image_cond": image_cond,
            "noisy": noisy.flatten(0, 1),
            "velocity": velocity.flatten(0, 1),
            "coords": coords.flatten(0, 1),
            "time": time,
            "keep": drop_mask(count, run.generator, run.device),
            "looks": voxels.looks[rows],
        }

    def losses(batch: Batch) -> dict[str, Tensor]:
        tokens = [batch.get(f"level {index}") for index in range(1 + max(cond.levels))]
        keep, count = batch["keep"], len(batch["time"])
        sites = Sites.even(batch["coords"], count, (run.sizes.resolution,) * 3)
        with run.autocast():
            context = [view.repeat(DRAWS, 1, 1) * keep[:, None, None] for view in cond(tokens, batch["image_cond"])]
            prediction = flow(SparseTensor(batch["noisy"], sites=sites), 1000 * batch["time"], context)
            looks = read_out()
        error = (looks.float().unflatten(0, (count, -1)) - batch["looks"]).abs().mean((1, 2))
        return {
            "flow": (prediction.feats.float() - batch["velocity"]).square().mean(),
            "looks": (keep * error).mean(),
        }

    run.train({"cond": cond, "flow": flow, "read_out": read_out}, draw, losses)


if __name__ == "__main__":
    main()
