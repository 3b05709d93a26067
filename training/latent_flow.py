"""Structured-latent conditioner, flow transformer and decoders: noise on active voxels to latents under the views'
tokens, and on to Gaussians and a mesh field.

    python -m training.latent_flow --data objects.safetensors --out runs --minutes 12

The active voxels are what the structure's networks make of the same views, so that the flow learns which of them the
surface really passes through, and where.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.conditions import (
    DROP,
    FrozenEncoders,
    FrozenStructure,
    ReadOut,
    count_parameters,
    drop_mask,
    logit_normal_times,
    noised,
)
from training.data.objects import Instances
from training.data.surface import SurfaceCache, SurfaceSamples
from training.data.voxels import VoxelBatch, corner_targets, voxelise
from training.graphs import Batch
from training.latent_vae import gaussian_losses, mesh_losses, surface_overlap
from training.loop import Run, parser
from trellis.models import (
    ModulatedSLATMultiViewCond,
    SLatEncoder,
    SLatFlowModel,
    SLatGaussianDecoder,
    SLatMeshDecoder,
)
from trellis.modules.sparse import Sites, SparseTensor

TIME_MEAN = 1.0  # of true latents with noise
OWN_TIME_MEAN = 0.0  # of the flow's own first outcome with noise
VIEWS = (4, 2, 4, 8, 4, 1)
# Voxels of each object that take part in a step, drawn at random: attention hardly misses the others, and equal numbers
# need neither padding nor masks. Objects with fewer repeat some.
TOKENS = 1024
# Every so many steps the outcomes are decoded, which takes all voxels: fewer scenes then, of which a part is cut off if
# they have more. Such a step, which cannot be recorded, costs more than the five others.
DECODED_EVERY = 6
ALL_TOKENS = 4096
DECODED_WEIGHT = 0.5
LOSSES = "means", "colour", "shape", "opacity", "sdf", "inside", "vertex", "regular"  # of the decoders
DECODED = *LOSSES, "surface IoU", "filled"  # shown; the share of filled voxels is the IoU of those that were guessed


@dataclass
class Truth:
    """What decoded outcomes are compared with: the surfaces, all active voxels, and their rows in the batch [N]."""

    instances: Instances
    samples: SurfaceSamples
    voxels: VoxelBatch
    places: Tensor


def shuffled(coords: Tensor, count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Rows of `wanted` voxels drawn at random of each of `count` objects, or of all that it has, object by object.

    coords [N, 4] (object, x, y, z) with the objects in ascending order.
    """
    chance = torch.rand(len(coords), generator=generator, device=coords.device, dtype=torch.float64)
    return _first(coords[:, 0].long(), chance, count, wanted)


def cut_off(coords: Tensor, count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """The same of those voxels that lie farthest in a random direction, in the order of `coords`."""
    owner = coords[:, 0].long()
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, device=coords.device), dim=1)
    height = (coords[:, 1:] * direction[owner]).sum(1).double()
    return _first(owner, (height - height.min()) / (height.max() - height.min() + 1), count, wanted).sort().values


def _first(owner: Tensor, key: Tensor, count: int, wanted: int) -> Tensor:
    """Rows of the `wanted` lowest keys in [0, 1) of each of `count` owners, owner by owner."""
    sizes = torch.bincount(owner, minlength=count)
    rank = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[owner]
    return (owner + key).argsort()[rank < wanted]


def equal_rows(owner: Tensor, count: int, wanted: int) -> tuple[Tensor, Tensor]:
    """Rows [count, wanted] of each of `count` objects, which repeat, and the first place of each row [N] among them;
    owner [N] int64 in ascending order, at most `wanted` times the same."""
    sizes = torch.bincount(owner, minlength=count)
    starts = sizes.cumsum(0) - sizes
    slot = torch.arange(wanted, device=owner.device) % sizes[:, None]
    return starts[:, None] + slot, owner * wanted + torch.arange(len(owner), device=owner.device) - starts[owner]


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, minutes=12, learning_rate=8e-4).parse_args(argv)
    run = Run("latent_flow", args)
    encoders, structure = FrozenEncoders(run), FrozenStructure(run)
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
    gaussians = SLatGaussianDecoder(**networks["slat_decoder_gs"])
    mesh = SLatMeshDecoder(**networks["slat_decoder_mesh"])
    for name, decoder in (("gs", gaussians), ("mesh", mesh)):
        decoder.load_state_dict(load_file(run.weights_of("latent_vae", name)))
    print(f"[latent_flow] {count_parameters(cond, flow):.1f} M parameters", flush=True)

    def draw(step: int) -> Batch:
        decoded, resolution = step % DECODED_EVERY == 0, run.sizes.resolution
        scenes = run.batch(8 if decoded else 24)
        wanted = (ALL_TOKENS if decoded else TOKENS) // (32 if args.tiny else 1)
        # Steps that are decoded go through the numbers of views as well.
        per_scene = VIEWS[(step // DECODED_EVERY if decoded else step) % len(VIEWS)]
        instances = run.library.random_instances(scenes, run.generator)
        tokens, image_cond = encoders(instances, per_scene)
        samples = cache.sample(instances, run.sizes.surface_samples, run.generator)
        voxels = voxelise(samples, resolution, support=structure(tokens, image_cond))
        if decoded:
            voxels = voxels.at(cut_off(voxels.coords, scenes, wanted, run.generator))
        with run.autocast():
            z = latent(SparseTensor(voxels.feats, voxels.coords), sample_posterior=False)
        data = (voxels.latent(z.feats) - mean) / std
        if not decoded:
            chosen = shuffled(voxels.coords, scenes, wanted, run.generator)
            voxels, data = voxels.at(chosen), data[chosen]
        rows, places = equal_rows(voxels.coords[:, 0].long(), scenes, wanted)
        rows, own = rows.flatten(), scenes // 2  # scenes that go on from their own first outcome, not from the truth
        coords = voxels.coords[rows]
        # Repeated voxels must also repeat their noise, or they would give each other away.
        noise = torch.randn(data.shape, generator=run.generator, device=run.device)[rows]
        batch = {
            **{f"level {index}": t for index, t in enumerate(tokens) if t is not None},
            "image_cond": image_cond,
            "coords": coords,
            "data": data[rows],
            "noise": noise,
            "looks": voxels.looks[rows],
            "own time": logit_normal_times(own, OWN_TIME_MEAN, run.generator, run.device),
            "time": logit_normal_times(scenes - own, TIME_MEAN, run.generator, run.device),
            "keep": drop_mask(scenes - own, run.generator, run.device, 2 * DROP),
        }
        return batch | ({"truth": Truth(instances, samples, voxels, places)} if decoded else {})

    def losses(batch: Batch) -> dict[str, Tensor]:
        """As the structure's (`structure_flow.StructureTask.losses`): the first step from noise alone, half of the
        scenes from what came of it, the other half from the truth under noise; and what the decoders make of it."""
        tokens = [batch.get(f"level {index}") for index in range(1 + max(cond.levels))]
        data, noise, scenes, own = batch["data"], batch["noise"], len(batch["image_cond"]), len(batch["own time"])
        sites = Sites.even(batch["coords"], scenes, (run.sizes.resolution,) * 3)
        with run.autocast():
            context = cond(tokens, batch["image_cond"])

        def predict(states: Tensor, times: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
            """Velocities of noisy states [N, C] at the scenes' times, and the error of the looks."""
            with run.autocast():
                views = [view * keep[:, None, None] for view in context]
                velocity = flow(SparseTensor(states, sites=sites), 1000 * times, views)
                looks = read_out()
            error = (looks.float() - batch["looks"]).abs().unflatten(0, (scenes, -1)).mean((1, 2))
            return velocity.feats.float(), (keep * error).mean()

        all_kept = torch.ones_like(torch.cat([batch["own time"], batch["time"]]))
        velocity, first_looks = predict(noise, all_kept, all_kept)
        outcome = noise - velocity
        each = len(data) // scenes
        times = torch.cat([batch["own time"], batch["time"]])
        at = times.repeat_interleave(each, output_size=len(data))[:, None]
        state, true_velocity = noised(torch.cat([outcome.detach()[: own * each], data[own * each :]]), noise, at)
        velocity, later_looks = predict(state, times, torch.cat([all_kept[:own], batch["keep"]]))
        later = (state - at * velocity)[: own * each]  # outcomes of the second step
        errors = {
            "flow": (outcome - data).square().mean(),
            "later": (later - data[: own * each]).square().mean()
            + (velocity - true_velocity)[own * each :].square().mean(),
            "looks": first_looks + later_looks,
        }
        decoded = decode(batch["truth"], outcome, later, data) if "truth" in batch else {}
        for name in DECODED:
            run.watch(name, decoded[name].detach() if decoded else torch.full((), torch.nan, device=data.device))
        total = sum(decoded[name] for name in DECODED if name in LOSSES) if decoded else torch.zeros_like(data[0, 0])
        return errors | {"decoded": DECODED_WEIGHT * total}

    def decode(truth: Truth, outcome: Tensor, later: Tensor, data: Tensor) -> dict[str, Tensor]:
        """What the decoders make of all first outcomes, of the second ones of the first quarter of the scenes, and of
        the true latents of the last quarter."""
        voxels, places = truth.voxels, truth.places
        owner, scenes = voxels.coords[:, 0].long(), len(truth.instances.objects)
        quarter = max(1, scenes // 4)
        every = torch.arange(len(owner), device=owner.device)
        second, true = every[owner < quarter], every[owner >= scenes - quarter]
        which = torch.cat([every, second, true])
        shown = voxels.at(which)
        shown.coords[len(every) :, 0] += scenes
        shown.coords[len(which) - len(true) :, 0] -= scenes - 2 * quarter
        latents = torch.cat([outcome[places], later[places[second]], data[places[true]]]) * std + mean
        z = SparseTensor(latents, shown.coords)
        with run.autocast():
            raw, cubes = gaussians.decode_raw(z), mesh.decode_raw(z)
        each = len(cubes.feats) // len(which)
        with torch.no_grad():
            first = cubes.coords[: len(every) * each]
            targets = corner_targets(first, truth.samples, cache, truth.instances, mesh.output_resolution)
        return {
            **gaussian_losses(raw.replace(raw.feats.float()), gaussians, shown),
            **mesh_losses(cubes, targets.of_voxels(which, each)),
            "surface IoU": surface_overlap(cubes.feats[: len(first)].detach(), voxels),
            "filled": voxels.filled.float().mean(),
        }

    trained = {"cond": cond, "flow": flow, "read_out": read_out, "gs": gaussians, "mesh": mesh}
    run.train(trained, draw, losses)


if __name__ == "__main__":
    main()
