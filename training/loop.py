"""What every training script shares: command line, schedule by time or steps, averaging, resuming, saving.

Nothing is pickled: weights, averaged weights and optimiser moments are safetensors files.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.assemble import EXTRA, PARTS
from training.data.objects import ObjectLibrary
from training.settings import Sizes, sizes
from trellis.modules.norm import ChannelLayerNorm32
from trellis.pipelines.quantisation import dequantise


def parser(description: str, minutes: float, learning_rate: float) -> argparse.ArgumentParser:
    """The options that all scripts take."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--data", type=Path, required=True, help="file written by training.data.pack")
    p.add_argument("--out", type=Path, required=True, help="folder of checkpoints, shared by all scripts")
    p.add_argument("--minutes", type=float, default=minutes, help="stop after this long (the schedule follows it)")
    p.add_argument("--steps", type=int, help="stop after this many steps instead")
    p.add_argument("--lr", type=float, default=learning_rate)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--init", type=Path, help="folder of runs, or an assembled checkpoint, whose weights to start from")
    p.add_argument("--compile", action="store_true", help="torch.compile the transformer blocks")
    p.add_argument("--tiny", action="store_true", help="shrunken networks and data, for a test on a CPU")
    p.add_argument("--batch-scale", type=float, help="multiply every batch size, for smaller or larger devices")
    p.add_argument("--objects", type=int, help="use only the first so many objects")
    return p


class Run:
    """One training run: data, networks under names, optimiser, schedule and files."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, self.args = name, args
        self.started = time.monotonic()
        self.device = torch.device(args.device)
        self.sizes: Sizes = sizes(args.tiny)
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high")
        # cuDNN's attention plans anew for every length, which takes longer than the attention itself.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.generator = torch.Generator(device=self.device).manual_seed(args.seed + 1)
        self.library = ObjectLibrary(args.data, self.device, limit=args.objects)
        self.networks = nn.ModuleDict()
        self.average: dict[str, Tensor] = {}
        self.step = 0
        self.losses: dict[str, list[Tensor]] = {}
        self.folder = args.out / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def batch(self, full: int) -> int:
        """A batch size, shrunken with the run."""
        return max(2, int(full * (self.args.batch_scale or self.sizes.batch_scale)))

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU, nothing on a CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def train(self, networks: dict[str, nn.Module]) -> Iterator[int]:
        """Yield step numbers until time or steps run out; call `update(losses)` in each. It resumes and saves alone."""
        self.networks = nn.ModuleDict(networks).to(self.device).train()
        parameters = [p for p in self.networks.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=self.args.lr,
            betas=(0.9, 0.98),
            fused=self.device.type == "cuda",
        )
        self._resume()
        if not self.average:
            self.average = {k: v.detach().clone() for k, v in self.networks.state_dict().items()}
        if self.args.compile:
            compile_blocks(self.networks)
        self.loop_started = last_log = last_export = time.monotonic()
        while (progress := self.progress()) < 1:
            for group in self.optimiser.param_groups:
                group["lr"] = self.args.lr * self._schedule(progress)
            yield self.step
            self.step += 1
            if time.monotonic() - last_log > 15:
                last_log = time.monotonic()
                self._log()
            if time.monotonic() - last_export > 120:
                last_export = time.monotonic()
                self.export()
        self._log()
        self.save()

    def progress(self) -> float:
        """Fraction of the run done, by steps when given, else by time."""
        if self.args.steps is not None:
            return self.step / self.args.steps if self.step < self.args.steps else 1.0
        return (time.monotonic() - self.started) / (60 * self.args.minutes)

    def _schedule(self, progress: float) -> float:
        """Linear warm-up over 200 steps, flat, then a cosine over the last 60 percent of the run."""
        warm = min(1.0, (self.step + 1) / 200)
        decay = max(0.0, (progress - 0.4) / 0.6)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(decay, 1.0))))

    def update(self, losses: dict[str, Tensor]) -> None:
        """Back-propagate the sum of `losses`, clip, step, and follow with the averaged weights."""
        total = sum(losses.values())
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        if bool(torch.isfinite(norm)):
            self.optimiser.step()
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        state = self.networks.state_dict()
        averages, values = zip(
            *[(self.average[k], v) for k, v in state.items() if v.is_floating_point()], strict=True
        )
        torch._foreach_lerp_(list(averages), list(values), 1 - decay)
        for key, value in losses.items():
            self.losses.setdefault(key, []).append(value.detach())

    def _log(self) -> None:
        means = {k: torch.stack(v[-200:]).float().mean().item() for k, v in self.losses.items() if v}
        self.losses = {}
        text = " ".join(f"{k} {v:.4f}" for k, v in means.items())
        rate = self.step / max(time.monotonic() - self.loop_started, 1e-6)
        print(f"[{self.name}] {self.progress():.0%} step {self.step} ({rate:.1f}/s) {text}", flush=True)

    def export(self) -> None:
        """Write the averaged weights of each network, in float16."""
        for network in self.networks:
            prefix = network + "."
            weights = {k[len(prefix) :]: _half(v) for k, v in self.average.items() if k.startswith(prefix)}
            file = self.folder / f"{network}.safetensors"
            save_file(weights, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)  # whoever reads meanwhile gets one or the other whole

    def save(self) -> None:
        """Export, and write the state needed to go on: weights, averages and the optimiser's moments."""
        self.export()
        state = {f"weight/{k}": v.contiguous().clone() for k, v in self.networks.state_dict().items()}
        state |= {f"average/{k}": v.contiguous().clone() for k, v in self.average.items()}
        for name, parameter in self.networks.named_parameters():
            for kind in ("exp_avg", "exp_avg_sq"):
                if parameter in self.optimiser.state:
                    state[f"{kind}/{name}"] = self.optimiser.state[parameter][kind].contiguous()
        save_file(state, self.folder / "resume.safetensors")
        seconds = time.monotonic() - self.started
        (self.folder / "run.json").write_text(json.dumps({"step": self.step, "seconds": seconds}))

    def _resume(self) -> None:
        path = self.folder / "resume.safetensors"
        if not path.exists():
            self._warm_start()
            return
        state = load_file(path, device=str(self.device))
        self.networks.load_state_dict({k[7:]: v for k, v in state.items() if k.startswith("weight/")})
        self.average = {k[8:]: v for k, v in state.items() if k.startswith("average/")}
        self.step = json.loads((self.folder / "run.json").read_text())["step"]
        for name, parameter in self.networks.named_parameters():
            if f"exp_avg/{name}" in state:
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(self.step), device=self.device if self.device.type == "cuda" else "cpu"),
                    "exp_avg": state[f"exp_avg/{name}"],
                    "exp_avg_sq": state[f"exp_avg_sq/{name}"],
                }
        print(f"[{self.name}] resumed at step {self.step}", flush=True)

    def _warm_start(self) -> None:
        """Begin with the weights that `--init` has for a network: a folder of runs, or an assembled checkpoint."""
        stems = {(run, network): stem for stem, _, run, network, _ in {**PARTS, **EXTRA}.values()}
        for name, network in self.networks.items():
            if self.args.init is None:
                continue
            stem = stems.get((self.name, name), name)
            for file in (f"{self.name}/{name}.safetensors", f"ckpts/{stem}.safetensors"):
                path = self.args.init / file
                if path.exists():
                    network.load_state_dict(dequantise(load_file(path)))
                    print(f"[{self.name}] {name} starts from {path}", flush=True)

    def frozen(self, run: str, network: str, module: nn.Module) -> nn.Module:
        """Load the averaged weights of another script's network and freeze it."""
        weights = load_file(self.args.out / run / f"{network}.safetensors")
        module.load_state_dict(weights)
        if self.args.compile:
            compile_norms(module)  # the blocks would be compiled for every number of views, to little gain
        return module.to(self.device).eval().requires_grad_(False)


def _half(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() else value


def compile_blocks(module: nn.Module) -> None:
    """Compile each dense transformer block on its own (equal blocks and equal shapes share one compilation), and the
    channel norms."""
    for child in module.modules():
        if type(child).__name__.endswith("Block") and hasattr(child, "mlp"):
            child.compile(dynamic=False)
    compile_norms(module)


def compile_norms(module: nn.Module) -> None:
    """Compile the channel norms, whose stock kernel spends a thread block on every voxel."""
    import torch._dynamo

    torch._dynamo.config.cache_size_limit = 64
    for child in module.modules():
        if isinstance(child, ChannelLayerNorm32):
            child.compile(dynamic=False)
