"""What the two flow scripts share: rendered views turned into frozen tokens, and the rectified-flow loss."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training.data.objects import Instances
from training.data.scenes import TRAINING_AZIMUTHS, cut_out, degrade, random_views, render
from training.data.voxels import above
from training.image_encoder import image_tokens
from training.loop import Run
from trellis.models import (
    VGGT,
    DinoVisionTransformer,
    ModulatedMultiViewCond,
    SparseStructureDecoder,
    SparseStructureFlowModel,
)

SIGMA_MIN = 1e-5
DROP = 0.1  # share of samples trained without condition, for classifier-free guidance (Ho and Salimans 2022)


def image_encoder(run: Run) -> nn.Module:
    """The trained image encoder of a run folder."""
    return run.frozen("image_encoder", "dinov2", DinoVisionTransformer(**run.sizes.networks["dinov2"]))


class Latest:
    """A frozen network of a run folder that another script may be training meanwhile: always its latest weights."""

    LOOK_EVERY = 100  # calls

    def __init__(self, run: Run, script: str, name: str, network: nn.Module):
        self.calls = 0
        self.file = run.weights_of(script, name)
        self.read_at = self.file.stat().st_mtime
        self.network = run.frozen(script, name, network)

    def __call__(self) -> nn.Module:
        self.calls += 1
        if self.calls % self.LOOK_EVERY == 0 and (written := self.file.stat().st_mtime) != self.read_at:
            self.network.load_state_dict(load_file(self.file))
            self.read_at = written
        return self.network


class FrozenEncoders:
    """The trained VGGT and image encoder of a run folder."""

    def __init__(self, run: Run):
        self.run = run
        self.vggt = Latest(run, "vggt", "vggt", VGGT(**run.sizes.networks["vggt"]))
        self.dino = image_encoder(run)

    @torch.no_grad()
    def __call__(self, instances: Instances, per_scene: int) -> tuple[list[Tensor | None], Tensor]:
        """Render `per_scene` views of each instance and return the aggregator's token list [B, n, P, 2C] and the
        image tokens [B, n, P, D]."""
        run, vggt = self.run, self.vggt()
        views = random_views(instances, per_scene, run.sizes.image_size, run.generator, **TRAINING_AZIMUTHS)
        rendering = render(run.library, instances, views, run.generator)
        images = degrade(cut_out(rendering, run.generator), run.generator)
        shape = (len(instances.objects), per_scene)
        with run.autocast():
            tokens, _ = vggt.aggregator(images.unflatten(0, shape), keep=vggt.intermediate_layers)
            image_cond = image_tokens(self.dino, images)
        return tokens, image_cond.unflatten(0, shape)


class FrozenStructure:
    """The trained structure networks of a run folder, which guess the active voxels of a scene in one step."""

    THRESHOLDS = -1.4, -0.2  # of the logits, drawn anew for each scene: the pipeline tries several, too

    def __init__(self, run: Run):
        self.run = run
        sizes = run.sizes.networks
        self.cond = Latest(run, "structure_flow", "cond", ModulatedMultiViewCond(**sizes["ss_cond"]))
        self.flow = Latest(run, "structure_flow", "flow", SparseStructureFlowModel(**sizes["ss_flow"]))
        self.decoder = Latest(run, "structure_flow", "decoder", SparseStructureDecoder(**sizes["ss_decoder"]))

    @torch.no_grad()
    def __call__(self, tokens: list[Tensor | None], image_cond: Tensor) -> Tensor:
        """Tokens and image tokens of B scenes, from `FrozenEncoders`, to active voxels [B, 1, R, R, R] bool, at least
        one of each scene."""
        run, flow, count = self.run, self.flow(), len(image_cond)
        shape = count, flow.in_channels, *[flow.resolution] * 3
        noise = torch.randn(shape, generator=run.generator, device=run.device)
        with run.autocast():
            context = self.cond()(tokens, image_cond[:, :, 5:])
            velocity = flow(noise, torch.full((count,), 1000.0, device=run.device), context)
            logits = self.decoder()(noise - velocity.float()).float()
        low, high = self.THRESHOLDS
        share = torch.rand(count, 1, 1, 1, 1, generator=run.generator, device=run.device)
        return above(logits, low + (high - low) * share)


class ReadOut(nn.Module):
    """A linear reading of what a flow network's last hidden state knows of the finished object; in training only.

    The velocity is mostly noise, and so a slow teacher of what the views have to say. Asking the same features for
    plain properties of the object at every noise level tells the conditioner and the cross-attentions early.
    """

    def __init__(self, flow: nn.Module, channels: int):
        super().__init__()
        self.read = nn.Linear(flow.out_layer.in_features, channels)
        self.hidden: Tensor | None = None
        flow.out_layer.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.hidden = inputs[0]

    def forward(self) -> Tensor:
        """The reading of the flow's latest call, [..., channels]."""
        hidden, self.hidden = self.hidden, None
        return self.read(hidden)


def logit_normal_times(count: int, mean: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Times [count] whose logits are normal with deviation 1 (Esser et al. 2024, arXiv:2403.03206): the greater the
    mean, the more of them are near 1, where all is noise."""
    return torch.sigmoid(mean + torch.randn(count, generator=generator, device=device))


def noised(data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The state at time t (broadcastable to data) and the velocity to predict: x = (1-t) x0 + (s + (1-s) t) e."""
    return (1 - t) * data + (SIGMA_MIN + (1 - SIGMA_MIN) * t) * noise, (1 - SIGMA_MIN) * noise - data


def drop_mask(count: int, generator: torch.Generator, device: torch.device, share: float = DROP) -> Tensor:
    """[count] float: 0 for the share of samples that train without condition."""
    return (torch.rand(count, generator=generator, device=device) >= share).float()


def count_parameters(*modules: nn.Module) -> float:
    """Millions of parameters."""
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6
