"""What every training script shares: command line, schedule by time or steps, averaging, resuming, saving.

Nothing is pickled: weights, averaged weights and optimiser moments are safetensors files.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.assemble import BEFORE, STEMS, weights_file
from training.data.objects import ObjectLibrary
from training.graphs import Batch, GraphedStep, drawn_ahead
from training.muon import Muon
from training.peers import Peers
from training.settings import Sizes, sizes
from trellis import backends
from trellis.modules.norm import ChannelLayerNorm32
from trellis.modules.sparse.transformer import ModulatedSparseTransformerCrossBlock, SparseTransformerBlock
from trellis.modules.transformer import TransformerCrossBlock
from trellis.modules.vit import Block
from trellis.pipelines.quantisation import dequantise

SHOWN = 200  # latest steps whose mean losses are printed


def parser(
    description: str, minutes: float, learning_rate: float, autoencoder: bool = False
) -> argparse.ArgumentParser:
    """The options that all scripts take, and the one of the autoencoders."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--data", type=Path, required=True, help="file written by training.data.pack")
    p.add_argument("--out", type=Path, required=True, help="folder of checkpoints, shared by all scripts")
    p.add_argument("--minutes", type=float, default=minutes, help="stop after this long (the schedule follows it)")
    p.add_argument("--steps", type=int, help="stop after this many steps instead")
    p.add_argument("--lr", type=float, default=learning_rate)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument(
        "--init",
        type=Path,
        nargs="+",
        default=[],
        help="folders of runs, or assembled checkpoints, whose weights to start from; the first that has them counts",
    )
    p.add_argument("--sizes", type=json.loads, metavar="JSON", help="other arguments of networks, by their names")
    p.add_argument("--tiny", action="store_true", help="shrunken networks and data, for a test on a CPU")
    p.add_argument("--batch-scale", type=float, help="multiply every batch size, for smaller or larger devices")
    p.add_argument("--objects", type=int, help="use only the first so many objects")
    p.add_argument("--compile", action="store_true", help="fuse the kernels of dense blocks; takes a minute")
    if autoencoder:
        p.add_argument(
            "--keep-decoders",
            action="store_true",
            help="leave the decoders of --init as they are and learn their latents; flows trained before stay valid",
        )
    return p


class Run:
    """One training run: data, networks under names, optimiser, schedule and files."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, self.args = name, args
        self.started = time.monotonic()
        self.peers = Peers(torch.device(args.device))
        self.device = self.peers.device
        self.sizes: Sizes = sizes(args.tiny, args.sizes)
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high")
        # cuDNN's attention plans anew for every length, which takes longer than the attention itself.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.generator = torch.Generator(device=self.device).manual_seed(args.seed + 1 + 1000 * self.peers.rank)
        self.library = ObjectLibrary(args.data, self.device, limit=args.objects)
        self.networks = nn.ModuleDict()
        self.average: dict[str, Tensor] = {}
        self.step = 0
        self.losses: deque[Tensor] = deque(maxlen=SHOWN)  # of the latest steps, one row for each
        self.names: list[str] = []  # of the losses
        self.shown: dict[str, float] = {}  # their latest means
        self.folder = args.out / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def batch(self, full: int) -> int:
        """A batch size, shrunken with the run."""
        return max(2, int(full * (self.args.batch_scale or self.sizes.batch_scale)))

    def autocast(self) -> torch.autocast:
        """bfloat16 on a GPU, nothing on a CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def train(
        self,
        networks: dict[str, nn.Module],
        draw: Callable[[int], Batch],
        losses: Callable[[Batch], dict[str, Tensor]],
        graphs: bool = True,
    ) -> None:
        """Train until time or steps run out; resumes, averages, logs and saves.

        Args:
            networks: under the names of their files.
            draw: the batch of a step, without gradients; it is called ahead of time.
            losses: of a batch; their sum is minimised.
            graphs: on a GPU, record the step as CUDA graphs (see `GraphedStep` for what it then may not do).
        """
        self.networks = nn.ModuleDict(networks).to(self.device).train()
        self.compile_blocks(self.networks)
        on_gpu = self.device.type == "cuda"
        self.rate = torch.zeros((), device=self.device)  # a tensor, so that recorded steps follow the schedule
        matrices = block_matrices(self.networks)
        self.muon = Muon(matrices, self.rate)
        taken = {id(matrix) for matrix in matrices}
        parameters = [p for p in self.networks.parameters() if p.requires_grad and id(p) not in taken]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=self.rate,
            betas=(0.9, 0.98),
            fused=True,
            capturable=on_gpu,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate  # one tensor for all groups
        self._resume()
        if not self.average:
            self.average = {k: v.detach().clone() for k, v in self.networks.state_dict().items()}

        def step(batch: Batch) -> Tensor:
            self.watched: dict[str, Tensor] = {}
            values = losses(batch)
            self._descend(sum(values.values()))
            shown = values | self.watched
            self.names = list(shown)
            return torch.stack([value.detach().float() for value in shown.values()])

        take_step = GraphedStep(step) if graphs and on_gpu else step
        self.loop_started = last_log = last_export = time.monotonic()
        with _own_stream() if on_gpu else nullcontext():  # the default one cannot be recorded
            batches = drawn_ahead(draw, self.step, self.device)
            while (progress := self.peers.agreed(self.progress(), self.step)) < 1:
                self.rate.fill_(self.args.lr * self._schedule(progress))
                self.losses.append(take_step(next(batches)))
                self.step += 1
                self.peers.meet(self.networks, self.step)
                self._average()
                if time.monotonic() - last_log > 15:
                    last_log = time.monotonic()
                    self._log()
                if time.monotonic() - last_export > 120:
                    last_export = time.monotonic()
                    self.export()
        if on_gpu:
            torch.cuda.synchronize(self.device)
        self.peers.leave()
        self._log()
        self.save()

    def compile_blocks(self, network: nn.Module) -> None:
        """With `--compile`, let torch's compiler fuse the small kernels of dense transformer blocks and channel norms.

        Modules of the same sizes share what is compiled, so this takes one build for each shape of a batch.
        """
        if not self.args.compile:
            return
        torch._dynamo.config.recompile_limit = 64  # the shapes of all blocks count together
        backends.use("norms", "torch", self.device)  # which the compiler joins with what stands around them
        for module in network.modules():
            if isinstance(module, Block | TransformerCrossBlock | ChannelLayerNorm32):
                module.compile(dynamic=False)

    def watch(self, name: str, value: Tensor) -> None:
        """Show a number beside the losses of the step that is being computed; every step shows the same ones, NaN where
        it has none."""
        self.watched[name] = value

    def progress(self) -> float:
        """Fraction of the run done, by steps when given, else by time."""
        if self.args.steps is not None:
            return self.step / self.args.steps if self.step < self.args.steps else 1.0
        return (time.monotonic() - self.started) / (60 * self.args.minutes)

    def _schedule(self, progress: float) -> float:
        """Linear warm-up over 200 steps, times a straight line from 1 to nothing at the end of the run.

        At any rate held flat the losses soon stand still and fall only as the rate falls (training/LOG.md, run 3).
        """
        return min(1.0, (self.step + 1) / 200) * max(0.0, 1 - progress)

    def _descend(self, total: Tensor) -> None:
        """Back-propagate, clip each network's gradient to length 1, and step unless something is not finite."""
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        trained = [n for n in self.networks.values() if any(p.grad is not None for p in n.parameters())]
        norms = [nn.utils.clip_grad_norm_(network.parameters(), 1.0) for network in trained]
        finite = torch.isfinite(torch.stack(norms).sum())
        self.optimiser.found_inf = (~finite).float()
        self.optimiser.step()
        self.muon.step(finite)

    def _average(self) -> None:
        """Follow the weights with their exponential average."""
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        state = {k: v for k, v in self.networks.state_dict().items() if v.is_floating_point()}
        torch._foreach_lerp_([self.average[k] for k in state], list(state.values()), 1 - decay)

    def _log(self) -> None:
        means = torch.stack(list(self.losses)).nanmean(0).tolist() if self.losses else []
        self.shown = dict(zip(self.names, means, strict=False))
        if self.peers.rank:
            return
        text = " ".join(f"{k} {v:.4f}" for k, v in self.shown.items())
        rate = self.step / max(time.monotonic() - self.loop_started, 1e-6)
        print(f"[{self.name}] {self.progress():.0%} step {self.step} ({rate:.1f}/s) {text}", flush=True)

    def export(self) -> None:
        """Write the averaged weights of each network, in float16; of several processes the first does so."""
        if self.peers.rank:
            return
        for network in self.networks:
            prefix = network + "."
            weights = {k[len(prefix) :]: _half(v) for k, v in self.average.items() if k.startswith(prefix)}
            file = self.folder / f"{network}.safetensors"
            save_file(weights, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)  # whoever reads meanwhile gets one or the other whole

    def save(self) -> None:
        """Export, and write the state needed to go on: weights, averages and the optimiser's moments."""
        if self.peers.rank:
            return
        self.export()
        state = {f"weight/{k}": v.contiguous().clone() for k, v in self.networks.state_dict().items()}
        state |= {f"average/{k}": v.contiguous().clone() for k, v in self.average.items()}
        for name, parameter in self.networks.named_parameters():
            for kind in ("exp_avg", "exp_avg_sq"):
                if parameter in self.optimiser.state:
                    state[f"{kind}/{name}"] = self.optimiser.state[parameter][kind].contiguous()
        momenta = self.muon.momenta()
        state |= {f"momentum/{k}": momenta[p].clone() for k, p in self.networks.named_parameters() if p in momenta}
        save_file(state, self.folder / "resume.safetensors")
        seconds = time.monotonic() - self.started
        (self.folder / "run.json").write_text(json.dumps({"step": self.step, "seconds": seconds, "shown": self.shown}))

    def _resume(self) -> None:
        path = self.folder / "resume.safetensors"
        if not path.exists():
            self._warm_start()
            return
        state = load_file(path, device=str(self.device))
        self.networks.load_state_dict({k[7:]: v for k, v in state.items() if k.startswith("weight/")})
        self.average = {k[8:]: v for k, v in state.items() if k.startswith("average/")}
        self.step = json.loads((self.folder / "run.json").read_text())["step"]
        momenta = self.muon.momenta()
        for name, parameter in self.networks.named_parameters():
            if parameter in momenta:
                momenta[parameter].copy_(state[f"momentum/{name}"])
            if f"exp_avg/{name}" in state:
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(self.step), device=self.device if self.device.type == "cuda" else "cpu"),
                    "exp_avg": state[f"exp_avg/{name}"],
                    "exp_avg_sq": state[f"exp_avg_sq/{name}"],
                }
        print(f"[{self.name}] resumed at step {self.step}", flush=True)

    def _warm_start(self) -> None:
        """Begin with the weights that `--init` has for a network: folders of runs, or assembled checkpoints."""
        for name, network in self.networks.items():
            run = self.name
            if run == "vggt" and (run, name) not in STEMS:
                run = "structure_flow"  # whose networks are also trained along with VGGT
            files = [f"{self.name}/{name}", f"ckpts/{STEMS.get((run, name), name)}"]
            if run in BEFORE:
                files.insert(1, f"{BEFORE[run]}/{name}")
            paths = (folder / f"{file}.safetensors" for folder in self.args.init for file in files)
            found = [path for path in paths if path.exists()]
            if found:
                weights = dequantise(load_file(found[0]))
                network.load_state_dict({k: _fitted(v, network.state_dict()[k]) for k, v in weights.items()})
                print(f"[{self.name}] {name} starts from {found[0]}", flush=True)

    def weights_of(self, run: str, network: str) -> Path:
        """Where another script keeps the averaged weights of a network."""
        return weights_file(self.args.out, run, network)

    def frozen(self, run: str, network: str, module: nn.Module) -> nn.Module:
        """Load the averaged weights of another script's network and freeze it."""
        module.load_state_dict(load_file(self.weights_of(run, network)))
        self.compile_blocks(module)
        return module.to(self.device).eval().requires_grad_(False)


def block_matrices(networks: nn.Module) -> list[nn.Parameter]:
    """The trained weights of the linear layers of transformer blocks, for `Muon`; all others are Adam's."""
    kinds = Block, TransformerCrossBlock, SparseTransformerBlock, ModulatedSparseTransformerCrossBlock
    return [
        layer.weight
        for block in networks.modules()
        if isinstance(block, kinds)
        for layer in block.modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad
    ]


@contextmanager
def _own_stream() -> Iterator[None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


def _fitted(value: Tensor, wanted: Tensor) -> Tensor:
    """A position table [1, 1 + side^2, C] of another image size, resampled; everything else as it is."""
    if value.shape == wanted.shape or value.ndim != 3:
        return value
    grids = [math.isqrt(x.shape[1] - 1) for x in (value, wanted)]
    table = value[:, 1:].float().unflatten(1, (grids[0], grids[0])).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(grids[1], grids[1]), mode="bicubic", align_corners=False)
    return torch.cat([value[:, :1].float(), table.flatten(2).transpose(1, 2)], 1)


def _half(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() else value
