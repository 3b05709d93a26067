"""The stages of a reconstruction at full size, each as the pipeline runs it and as a plain path of the same networks.

The plain path calls the networks as their definitions read: every layer of the aggregator is kept, conditions are
projected again at every step, the zero condition is real tokens of zeros, the two halves of a guided step run apart,
and the reference backends do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trellis import backends
from trellis.modules.attention import CondCache, ZeroCondition, stack_conditions
from trellis.modules.precision import autocast_dtype, store_for_autocast
from trellis.modules.sparse import SparseTensor
from trellis.pipelines import TrellisVGGTTo3DPipeline
from trellis.pipelines.conditioning import aggregate
from trellis.pipelines.noise import latent_noise, structure_noise
from trellis.representations.flexicubes import cubes_to_mesh

# What the original's app asks for: the settings of the reference measurements.
STRUCTURE = {"steps": 30, "cfg_strength": 7.5, "cfg_interval": (0.6, 1.0), "guidance_rescale": 0.7, "rescale_t": 5.0}
LATENT = {"steps": 12, "cfg_strength": 3.0, "cfg_interval": (0.6, 1.0), "guidance_rescale": 0.5, "rescale_t": 3.0}
PLAIN = {
    "attention": "sdpa", "sparse_convolution": "torch", "norms": "torch", "feed_forward": "torch",
    "launching": "stream",
}  # fmt: skip
DENSE = {"attention by cudnn": {"attention": "cudnn"}}  # by title, what a GPU may prefer for dense tokens

KEYS = ("vggt", "structure", "latent", "gaussians", "mesh", "surface")

Comparable = Tensor | list[Tensor]


@dataclass(frozen=True)
class Stage:
    """key: its short name. title: for a table. ours, plain: the same work done in two ways, each returning what can be
    compared.

    networks: those that the stage runs, by their names in the pipeline.
    step: what the stage repeats, if it repeats something. variants: other ways to do the same, by title.
    choices: backends worth trying on a GPU beside the references, by title.
    """

    key: str
    title: str
    ours: Callable[[], Comparable]
    plain: Callable[[], Comparable]
    networks: tuple[str, ...]
    step: Callable[[], Any] | None = None
    variants: dict[str, Callable[[], Comparable]] = field(default_factory=dict)
    choices: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def once(self) -> Callable[[], Any]:
        """The shortest call that shows all of the stage."""
        return self.step or self.ours

    @property
    def once_title(self) -> str:
        return f"one guided step of {self.key}" if self.step else self.title


@contextmanager
def plain_path(pipeline: TrellisVGGTTo3DPipeline) -> Iterator[None]:
    """The reference backends for a while, and VGGT's weights stored in float32 (what they were rounded to)."""
    device, aggregator = pipeline.device, pipeline.vggt.aggregator
    before = {need: candidate.name for need, candidate in backends.used(device).items()}
    stored = aggregator.patch_embed.patch_embed.proj.weight.dtype
    backends.choose(device, **{**before, **PLAIN})
    store_for_autocast(aggregator, torch.float32)
    try:
        yield
    finally:
        store_for_autocast(aggregator, stored)
        backends.choose(device, **before)


def stages(
    pipeline: TrellisVGGTTo3DPipeline,
    views: int,
    coords: Tensor,
    structure: dict[str, Any],
    latent: dict[str, Any],
    batched: bool = True,
) -> list[Stage]:
    """The stages of the published table, for random views and conditions and given voxels.

    batched: whether a guided step runs the network once with both conditions.
    """
    device, models = pipeline.device, pipeline.models
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    images = torch.rand(views, 3, *(pipeline.image_resolution,) * 2, generator=generator).to(device)
    width = models["slat_flow_model"].cond_channels
    known = models["sparse_structure_vggt_cond"].multiview_cond_tokens.shape[1]
    tokens = 1 + pipeline.image_cond_model.num_register_tokens
    tokens += (pipeline.image_resolution // pipeline.image_cond_model.patch_size) ** 2
    cond = draw(1, known, models["sparse_structure_flow_model"].cond_channels)
    view_conds = [draw(1, tokens, width) for _ in range(views)]
    slat = SparseTensor(draw(len(coords), pipeline.slat_mean.shape[1]), coords.to(device))
    decoder = models.get("slat_decoder_mesh")
    cubes: dict[str, SparseTensor] = {}

    def fresh(x: SparseTensor) -> SparseTensor:
        """The same voxels without the tables that an earlier run left on them."""
        return SparseTensor(x.feats, x.coords.clone())

    def mesh_network() -> Tensor:
        cubes["raw"] = decoder.decode_raw(fresh(slat))
        return cubes["raw"].feats

    def surface() -> Tensor:
        raw = cubes.get("raw") or decoder.decode_raw(fresh(slat))
        return cubes_to_mesh(raw.coords[:, 1:], raw.feats, decoder.output_resolution).vertices

    def gaussians() -> Tensor:
        return models["slat_decoder_gs"](fresh(slat))[0].get_xyz

    def plain_structure() -> Tensor:
        noise = structure_noise(models["sparse_structure_flow_model"], 1).to(device)
        sampler = pipeline.sparse_structure_sampler
        flow = models["sparse_structure_flow_model"]
        return sampler.sample(flow, noise, cond, torch.zeros_like(cond), **structure).samples

    def our_structure(together: bool = batched) -> Tensor:
        return pipeline.sample_structure_latent(cond, 1, structure, batched=together)

    prepared: dict[str, CondCache] = {}

    def structure_step() -> Tensor:
        flow = models["sparse_structure_flow_model"]
        if not prepared:
            caches = [flow.precompute_condition(c) for c in (cond, ZeroCondition(1))]
            prepared["both"] = stack_conditions(caches)
        noise = structure_noise(flow, 1).to(device)
        return flow(torch.cat([noise, noise]), torch.full((2,), 800.0, device=device), prepared["both"])

    def plain_latent() -> Tensor:
        noise = latent_noise(models["sparse_structure_flow_model"], models["slat_flow_model"], 1, len(coords))
        noise = SparseTensor(noise.to(device), coords.to(device))
        zeros = [torch.zeros_like(view) for view in view_conds]
        return pipeline.slat_sampler.sample(models["slat_flow_model"], noise, view_conds, zeros, **latent).samples.feats

    def our_latent() -> Tensor:
        return pipeline.sample_slat(view_conds, coords, 1, latent, batched=batched).feats

    found = [
        Stage("vggt", "VGGT aggregator", lambda: _kept(aggregate(images, pipeline.vggt, _levels(pipeline))),
              lambda: _plain_aggregator(pipeline, images), ("vggt",)),
        Stage("structure", f"structure, {structure['steps']} steps", our_structure, plain_structure,
              ("sparse_structure_flow_model",), structure_step,
              {"conditions together" if not batched else "conditions apart": lambda: our_structure(not batched)},
              DENSE),
        Stage("latent", f"latent, {latent['steps']} steps", our_latent, plain_latent, ("slat_flow_model",)),
    ]  # fmt: skip
    if "slat_decoder_gs" in models:
        found.append(Stage("gaussians", "Gaussian decode", gaussians, gaussians, ("slat_decoder_gs",)))
    if decoder is not None:
        found.append(Stage("mesh", "mesh network", mesh_network, mesh_network, ("slat_decoder_mesh",)))
        found.append(Stage("surface", "FlexiCubes", surface, surface, ("slat_decoder_mesh",)))
    return found


def difference(ours: Comparable, plain: Comparable) -> float:
    """Root mean square of the difference over that of the plain result; infinite if the shapes differ."""
    ours, plain = (x if isinstance(x, list) else [x] for x in (ours, plain))
    if [x.shape for x in ours] != [x.shape for x in plain]:
        return float("inf")
    apart = sum((a.double() - b.double()).square().sum() for a, b in zip(ours, plain, strict=True))
    size = sum(b.double().square().sum() for b in plain)
    return float((apart / size.clamp_min(1e-300)).sqrt())


def _levels(pipeline: TrellisVGGTTo3DPipeline) -> set[int]:
    conditioners = (pipeline.models[name] for name in ("sparse_structure_vggt_cond", "slat_vggt_cond"))
    return {level for conditioner in conditioners for level in conditioner.levels}


def _kept(tokens: list[Tensor | None]) -> list[Tensor]:
    return [level for level in tokens if level is not None]


def _plain_aggregator(pipeline: TrellisVGGTTo3DPipeline, images: Tensor) -> list[Tensor]:
    """All layers kept; the returned ones are those that the pipeline reads."""
    on_gpu = images.device.type == "cuda"
    with torch.no_grad(), torch.autocast(images.device.type, autocast_dtype(images.device), enabled=on_gpu):
        tokens, _ = pipeline.vggt.aggregator(images[None])
    read = sorted(_levels(pipeline) | {pipeline.vggt.aggregator.depth - 1})
    return [tokens[level].float() for level in read]
